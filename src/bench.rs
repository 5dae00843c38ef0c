//! `qiyu bench`: load over real sockets, and whether everybody heard everything.
//!
//! A client like any other: it knows `docs/PROTOCOL.md` and nothing else of the
//! system. Every run checks what arrived; a fast run with a wrong count failed.

mod client;
mod hot;
mod many;
mod pairs;
mod report;
mod site;
mod tally;

use std::{process::ExitCode, time::Duration};

use clap::{Arg, ArgMatches, Command};
use tokio_util::sync::CancellationToken;

use self::{report::Report, site::Site};
use crate::{run::say, settings::Settings};

/// What is done before anything is measured: caches fill, windows open.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long what is under way at the end may still take to arrive.
const TAIL: Duration = Duration::from_secs(30);

/// The command line.
pub(crate) fn command() -> Command {
    let number = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("N").help(help).value_parser(clap::value_parser!(u64))
    };
    Command::new("bench")
        .about("Put load on a system of its own, or a running one, and check what arrives")
        .after_help(
            "Ends with 0: all is well. 1: messages were lost, doubled, out of order or refused. \
             2: the load itself was not what it should have been. 3: the machine was too noisy \
             for the numbers to mean anything.",
        )
        .arg(Arg::new("scenario").required(true).value_parser(["hot", "many", "pairs"]).help(
            "hot: one room, a fixed number of messages under way, how much goes through; \
                     many: many rooms at a fixed rate, how long it takes; pairs: 1:1 likewise",
        ))
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .help("HTTP of a running system that has QIYU_DEV_LOGIN; absent: one is started"),
        )
        .arg(
            Arg::new("pids")
                .long("pids")
                .value_name("PID,…")
                .value_delimiter(',')
                .help("processes of a running system whose CPU time is measured"),
        )
        .arg(number("clients", "listeners in the hot room, of each of many rooms, or pairs"))
        .arg(number("rooms", "rooms of `many`"))
        .arg(number("window", "messages under way at once in the hot room"))
        .arg(number("rate", "messages a second: of each of many rooms, or of all pairs together"))
        .arg(number("seconds", "how long is measured"))
}

/// What is asked for.
#[derive(Debug)]
struct Asked {
    clients: usize,
    rooms: usize,
    window: usize,
    rate: f64,
    measured: Duration,
}

/// Runs one scenario, tells the report, and returns the verdict.
pub(crate) async fn bench(
    arguments: &ArgMatches,
    settings: &Settings,
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let text = |name: &str| arguments.get_one::<String>(name).cloned();
    let scenario = text("scenario").unwrap_or_default();
    let number = |name: &str, default: u64| arguments.get_one(name).copied().unwrap_or(default);
    let [clients, rate] = match scenario.as_str() {
        "hot" => [1000, 0],
        "many" => [20, 1],
        _ => [500, 500],
    };
    let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX).max(1);
    let asked = Asked {
        clients: size(number("clients", clients)),
        rooms: size(number("rooms", 100)),
        window: size(number("window", 8)),
        rate: number("rate", rate) as f64,
        measured: Duration::from_secs(number("seconds", 10)),
    };
    let pids = arguments.get_many::<String>("pids").into_iter().flatten().cloned().collect();
    let measured = async {
        let site = match text("url") {
            Some(url) => Site::running(url, pids)?,
            None => Site::of_its_own(settings).await?,
        };
        let before = report::noise();
        let report = match scenario.as_str() {
            "hot" => hot::run(&site, &asked).await,
            "many" => many::run(&site, &asked).await,
            _ => pairs::run(&site, &asked).await,
        };
        let noise = before.max(report::noise());
        site.close().await;
        report.map(|report| Report { noise, ..report })
    };
    let Some(report) = stop.run_until_cancelled(Box::pin(measured)).await else {
        return Ok(ExitCode::FAILURE);
    };
    let report = report?;
    say(&report.to_string());
    Ok(ExitCode::from(report.verdict().code()))
}
