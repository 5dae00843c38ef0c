//! `qiyu verify`: compares everything derived from the log with the log.
//!
//! The log is applied to new folds, from its beginning or from the snapshot of its
//! forgotten prefix. They are compared with the live state: the owners' folds and their
//! snapshots, the buckets, the tables. Differences are checked again until they are
//! certain. Then the log is read once more to find the event at which each diverges.

mod accounting;
mod compare;
mod divergence;
mod key;
mod live;
mod rebuild;
mod report;
mod watch;

use std::{
    ops::RangeInclusive,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Arg, ArgMatches, Command};
use qiyu_nats::Bus;
use qiyu_schema::{AppId, Partition, RoomId};

pub use self::watch::{Watch, WatchConfig};
use self::{compare::Comparison, report::VerifyReport};
use crate::{Config, access::LogAccess, format::OutputFormat, terminal::print};

/// Exit code when a difference was found.
const DIFFERS: u8 = 1;
/// Exit code when a part could not be checked.
pub const UNCHECKED: u8 = 2;

/// The scope of a verification.
#[derive(Clone, Debug)]
struct VerifyScope {
    /// `None`: all rooms.
    room: Option<(AppId, RoomId)>,
    /// Database of the room tables.
    database_url: String,
    /// Whether owners and gateways can be queried.
    running: SystemState,
    /// Age up to which a message may lack an outcome.
    grace: Duration,
}

/// The default grace: two copies 4 s apart, those of a reassignment, and a pause. Longer
/// with a longer `QIYU_ACK_WAIT`.
const GRACE: Duration = Duration::from_secs(60);
const GRACE_MAX: Duration = Duration::from_secs(3600);

/// Whether services run on the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SystemState {
    Running,
    Stopped,
}

impl VerifyScope {
    fn partitions(&self) -> Vec<Partition> {
        match self.room {
            Some((app, room)) => vec![Partition::of_room(app, room)],
            None => Partition::all().collect(),
        }
    }
}

/// Parses a duration as the settings do, within a range; the error says which are accepted.
pub type ParseDuration = fn(&str, RangeInclusive<Duration>) -> Result<Duration, String>;

/// Defines the command line of `qiyu verify`.
pub fn command(parse_duration: ParseDuration) -> Command {
    let room = Arg::new("room")
        .long("room")
        .value_name("ROOMID")
        .help("Verify only this room, of the first of QIYU_APPS")
        .value_parser(|text: &str| text.parse::<RoomId>());
    let grace = Arg::new("grace")
        .long("grace")
        .value_name("DURATION")
        .help("How long a message may be on its way before its outcome is missed [default: 60s]")
        .value_parser(move |text: &str| parse_duration(text, Duration::ZERO..=GRACE_MAX));
    Command::new("verify")
        .about("Compare everything derived from the log with the log")
        .after_help(
            "Ends with 0 when everything is what the log says, with 1 when something differs, \
             with 2 when something could not be checked.",
        )
        .args([room, grace, OutputFormat::arg("pretty or json")])
}

/// Runs the command line and returns the exit code.
pub async fn run(arguments: &ArgMatches, config: &Config) -> anyhow::Result<ExitCode> {
    let room = arguments.get_one::<RoomId>("room").copied();
    let access = LogAccess::connect(&config.log).await?;
    let scope = VerifyScope {
        room: config.apps.first().copied().zip(room),
        database_url: config.database_url.expose().to_owned(),
        running: if access.is_running() { SystemState::Running } else { SystemState::Stopped },
        grace: arguments.get_one::<Duration>("grace").copied().unwrap_or(GRACE),
    };
    let report = verify(&access.bus, &scope).await;
    access.close().await;
    let report = report?;
    print(&match OutputFormat::from_args(arguments) {
        OutputFormat::Json => serde_json::to_string(&report)?,
        OutputFormat::Pretty => report.pretty(),
    });
    Ok(match (report.differences.is_empty(), report.unchecked.is_empty()) {
        (false, _) => ExitCode::from(DIFFERS),
        (true, false) => ExitCode::from(UNCHECKED),
        (true, true) => ExitCode::SUCCESS,
    })
}

/// Compares everything in `scope`.
async fn verify(bus: &Bus, scope: &VerifyScope) -> anyhow::Result<VerifyReport> {
    let started = Instant::now();
    let mut comparison = Comparison::begin(bus, scope).await?;
    comparison.confirm_differences(bus).await?;
    let accounting = comparison.accounting(bus).await?;
    let mut report = comparison.report(bus).await?;
    report.add_accounting(accounting);
    report.took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(report)
}
