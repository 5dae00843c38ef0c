//! `qiyu trace`: the record of one message.
//!
//! The log shows the acceptance and the audience, the ledger the rest. No running service
//! is queried, so it works after any restart, and on a system that does not run.

mod follow;
mod ledger;
mod message;
mod print;
mod verdict;

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command};
use qiyu_schema::{MsgId, UserId};
use serde_json::json;

use self::message::MessageTrace;
use crate::{Config, access::LogAccess, format::OutputFormat, terminal::print};

/// Defines the command line of `qiyu trace`.
pub fn command() -> Command {
    let msg_id = Arg::new("msg-id")
        .value_name("MSGID")
        .help("The message: what its receipt and every copy of it name")
        .required(true)
        .value_parser(|text: &str| text.parse::<MsgId>());
    let user = Arg::new("user")
        .long("user")
        .value_name("USERID")
        .help("Say in one sentence whether this user got it, and if not why not")
        .value_parser(|text: &str| text.parse::<UserId>());
    Command::new("trace")
        .about("Tell a message's life from the record: accepted, handed over, acknowledged by whom")
        .args([msg_id, user, OutputFormat::arg("pretty or json")])
}

/// Prints the record of the message named on the command line.
pub async fn run(arguments: &ArgMatches, config: &Config) -> anyhow::Result<()> {
    let msg_id = *arguments.get_one::<MsgId>("msg-id").context("which message?")?;
    let user = arguments.get_one::<UserId>("user").copied();
    let format = OutputFormat::from_args(arguments);
    let access = LogAccess::connect(&config.log).await?;
    let trace = MessageTrace::read(&access.bus, msg_id, user).await;
    access.close().await;
    let trace = trace?;
    let sentence = user.map(|user| verdict::of(&trace, user));
    match (format, sentence) {
        (OutputFormat::Json, sentence) => {
            let mut told = serde_json::to_value(&trace).context("write what was found as JSON")?;
            if let (Some(sentence), Some(told)) = (sentence, told.as_object_mut()) {
                told.insert("user".to_owned(), json!({ "id": user, "answer": sentence }));
            }
            print(&told.to_string());
        }
        (OutputFormat::Pretty, Some(sentence)) => print(&sentence),
        (OutputFormat::Pretty, None) => print(&print::pretty(&trace)),
    }
    Ok(())
}
