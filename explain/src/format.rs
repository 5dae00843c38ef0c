//! For people, or for programs.

use clap::{Arg, ArgMatches};

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputFormat {
    Pretty,
    Json,
}

impl OutputFormat {
    /// `--format`, explained by `help`.
    pub(crate) fn arg(help: &'static str) -> Arg {
        Arg::new("format")
            .long("format")
            .value_name("FORMAT")
            .help(help)
            .default_value("pretty")
            .value_parser(["pretty", "json"])
    }

    /// The one that was asked for.
    pub(crate) fn from_args(arguments: &ArgMatches) -> Self {
        match arguments.get_one::<String>("format").map(String::as_str) {
            Some("json") => Self::Json,
            _ => Self::Pretty,
        }
    }
}
