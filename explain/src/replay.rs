//! `qiyu replay`: shows a window of the log, a room's state, or plays the window again.

mod names;
mod output_watch;
mod pace;
mod playback;
mod pretty;
mod print_window;
mod sandbox;
mod selection;
mod translate;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use qiyu_nats::{Bus, log::ReadFrom};
use qiyu_schema::{AppId, RoomId, UserId, subject};
use time::OffsetDateTime;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::playback::Page;
use self::{
    output_watch::cancel_when_unread,
    pace::{Pace, Speed},
    playback::{ListenAddrs, PlaybackServer, PlaybackSource, serve},
    pretty::{Layout, RoomColumn},
    print_window::{LineFormat, PrintMode, PrintSummary, print_window},
    sandbox::Sandbox,
    selection::{Breadth, Selection},
};
use crate::{
    Config,
    access::LogAccess,
    capsule::{self, Capsule, EVENTS_MAX, TextPolicy},
    format::OutputFormat,
    log::{
        point::LogPoint,
        room_snapshot::{self, RoomSnapshot},
        seed_events,
        window::{LogWindow, ReadMode, WindowEnd},
    },
    terminal::{ColorMode, print, progress},
    text,
};

/// Defines the command line of `qiyu replay`.
pub fn command() -> Command {
    let value = |name: &'static str, shown: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(shown).help(help)
    };
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    let moment = |name, help| value(name, "MSGID|TIME", help).allow_hyphen_values(true);
    Command::new("replay")
        .about("Show what the log holds: of a room, a user, or everything")
        .after_help(
            "A TIME is 2026-11-25T20:00:00Z, \"2026-11-25 20:00\" (UTC), 20:00:00 (UTC, the last \
             time it was so late), \"10m ago\", -10m, -1h30m, @1764100800 (Unix seconds) or now. \
             Both ends are included. The log is that of --nats-url, else that of the system on \
             --data-dir; if that does not run, its nats-server does for as long as this reads.",
        )
        .arg(value("room", "ID", "One room").conflicts_with("user"))
        .arg(value("user", "ID", "One user: logins, messages, measures"))
        .arg(value("app", "ID", "The app [default: the first of --apps; for everything: all]"))
        .arg(moment("from", "Where to begin [default: where the log does]"))
        .arg(moment("to", "Where to end [default: where the log does now]"))
        .arg(value(
            "speed",
            "SPEED",
            "1x, 10x, … or max [default: max; with --into and --serve 1x]",
        ))
        .arg(OutputFormat::arg("For people, or JSON lines (docs/DEBUGGING.md)"))
        .arg(flag("follow", "Go on with what is appended, until Ctrl-C").conflicts_with("to"))
        .arg(flag("wide", "With --user: look through everybody's messages, too").requires("user"))
        .arg(
            flag("state", "The room as it was: who was inside, the host, mutes, counters")
                .conflicts_with_all(["from", "to", "follow"]),
        )
        .arg(
            moment("at", "With --state: right after this [default: now, or a capsule's end]")
                .requires("state"),
        )
        .arg(
            value("save", "FILE", "Save the window of a room as a capsule")
                .requires("room")
                .conflicts_with_all(["state", "follow", "load"]),
        )
        .arg(
            flag("redact", "With --save: without what people typed, names included")
                .requires("save"),
        )
        .arg(
            value("load", "FILE", "Read a capsule instead of a log")
                .conflicts_with_all(["room", "user", "app", "follow"]),
        )
        .arg(
            value("into", "NATS-URL", "Append the window to the log of a sandbox, as if it happened now")
                .conflicts_with_all(["user", "state", "follow", "save"]),
        )
        .arg(
            value("serve", "ADDR", "Show the room to WebSocket clients that connect to ADDR [default: --ws-listen], and the page at --http-listen")
                .num_args(0..=1)
                .default_missing_value("")
                .conflicts_with_all(["user", "state", "follow", "save", "into"]),
        )
}

/// Runs the command line. Must be awaited on the main thread: see [`LogAccess::connect`].
pub async fn run(
    arguments: &ArgMatches,
    settings: &Config,
    page: Page,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let options = ReplayOptions::read(arguments, settings)?;
    if let Some(path) = &options.load {
        let capsule = Capsule::load(path)?;
        return Box::pin(perform_kept(&options, capsule, settings, page, stop)).await;
    }
    let reached = LogAccess::connect(&settings.log).await?;
    let done = Box::pin(perform(&options, &reached, settings, page, stop)).await;
    reached.close().await;
    done
}

/// The room, user or app to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReplayTarget {
    Room(AppId, RoomId),
    User(AppId, UserId),
    Everything(Option<AppId>),
}

/// The parsed command line.
#[derive(Debug)]
struct ReplayOptions {
    target: ReplayTarget,
    from: Option<LogPoint>,
    to: Option<LogPoint>,
    speed: Speed,
    format: OutputFormat,
    patience: PrintMode,
    wide: bool,
    /// Shows the room's state instead of events.
    state: bool,
    /// `None`: now, or the end of the capsule.
    at: Option<LogPoint>,
    /// The file of a new capsule.
    save: Option<PathBuf>,
    words: TextPolicy,
    /// The capsule to read. `None`: the log.
    load: Option<PathBuf>,
    /// The NATS URL of the sandbox to append to.
    into: Option<String>,
    /// The address of playback sockets.
    serve: Option<SocketAddr>,
}

impl ReplayOptions {
    fn read(arguments: &ArgMatches, settings: &Config) -> anyhow::Result<Self> {
        let now = OffsetDateTime::now_utc();
        let given = |name: &str| arguments.get_one::<String>(name).map(String::as_str);
        let moment = |name: &str| {
            let parse = |text| {
                LogPoint::parse(text, now)
                    .map_err(|accepted| anyhow::anyhow!("--{name} {text:?} is not {accepted}"))
            };
            given(name).map(parse).transpose()
        };
        let app = given("app").map(|app| app.parse::<AppId>().context("--app")).transpose()?;
        let first = settings.apps.first().copied();
        let some_app = || app.or(first).context("no app is known: name it with --app");
        let target = match (given("room"), given("user")) {
            (Some(room), _) => ReplayTarget::Room(some_app()?, room.parse().context("--room")?),
            (None, Some(user)) => ReplayTarget::User(some_app()?, user.parse().context("--user")?),
            (None, None) => ReplayTarget::Everything(app),
        };
        let (from, to) = (moment("from")?, moment("to")?);
        let backwards = match (from, to) {
            (Some(LogPoint::Msg(from)), Some(LogPoint::Msg(to))) => to < from,
            (Some(LogPoint::At(from)), Some(LogPoint::At(to))) => to < from,
            _ => false,
        };
        if backwards {
            bail!("--to lies before --from");
        }
        let live = given("into").is_some() || given("serve").is_some();
        let speed = given("speed").unwrap_or(if live { "1x" } else { "max" });
        let speed = Speed::parse(speed)
            .map_err(|accepted| anyhow::anyhow!("--speed {speed:?} is not {accepted}"))?;
        let follow = arguments.get_flag("follow");
        Ok(Self {
            target,
            from,
            to,
            speed,
            format: OutputFormat::from_args(arguments),
            patience: if follow { PrintMode::Live } else { PrintMode::Whole },
            wide: arguments.get_flag("wide"),
            state: arguments.get_flag("state"),
            at: moment("at")?,
            save: given("save").map(PathBuf::from),
            words: if arguments.get_flag("redact") {
                TextPolicy::Redacted
            } else {
                TextPolicy::Kept
            },
            load: given("load").map(PathBuf::from),
            into: given("into").map(str::to_owned),
            serve: match given("serve") {
                None => None,
                Some("") => Some(settings.ws_listen),
                Some(address) => {
                    let parsed = address.parse();
                    Some(parsed.context("--serve takes an address such as 127.0.0.1:8086")?)
                }
            },
        })
    }

    fn start(&self) -> ReadFrom {
        match self.from {
            None => ReadFrom::After(0),
            Some(LogPoint::Msg(msg_id)) => ReadFrom::After(msg_id.seq().saturating_sub(1)),
            Some(LogPoint::At(unix_ms)) => ReadFrom::At { unix_ms },
        }
    }

    fn until(&self) -> WindowEnd {
        match (self.patience, self.to) {
            (PrintMode::Live, _) => WindowEnd::Never,
            (PrintMode::Whole, None) => WindowEnd::Here,
            (PrintMode::Whole, Some(LogPoint::Msg(msg_id))) => WindowEnd::Seq(msg_id.seq()),
            (PrintMode::Whole, Some(LogPoint::At(unix_ms))) => WindowEnd::At(unix_ms),
        }
    }

    fn read_mode(&self) -> ReadMode {
        match self.speed {
            Speed::Max => ReadMode::Stream,
            Speed::Times(_) => ReadMode::Batched,
        }
    }

    async fn selection(&self, bus: &Bus) -> anyhow::Result<Selection> {
        Ok(match self.target {
            ReplayTarget::Room(app, room) => Selection::Room(app, room),
            ReplayTarget::Everything(app) => Selection::Everything(app),
            // A room joined later has no filter yet, so a following reader
            // reads all rooms.
            ReplayTarget::User(app, user) if self.wide || self.patience == PrintMode::Live => {
                Selection::User(app, user, Breadth::Wide)
            }
            ReplayTarget::User(app, user) => {
                let breadth = selection::rooms_of(bus, app, user).await;
                let breadth = breadth.with_context(|| format!("find the rooms of user {user}"))?;
                Selection::User(app, user, breadth)
            }
        })
    }

    fn form(&self, selection: &Selection) -> LineFormat {
        match self.format {
            OutputFormat::Json => LineFormat::Json,
            OutputFormat::Pretty => {
                let rooms =
                    if selection.is_one_room() { RoomColumn::Hidden } else { RoomColumn::Shown };
                LineFormat::Pretty(Layout::new(pretty::columns(), ColorMode::of_stdout(), rooms))
            }
        }
    }
}

async fn perform(
    options: &ReplayOptions,
    reached: &LogAccess,
    settings: &Config,
    page: Page,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let bus = &reached.bus;
    if let (Some(path), ReplayTarget::Room(app, room)) = (&options.save, options.target) {
        return save(options, (app, room), bus, settings, path).await;
    }
    if let Some(url) = &options.into {
        return pour(options, bus, url, settings, stop).await;
    }
    if let Some(ws) = options.serve {
        let ReplayTarget::Room(app, room) = options.target else {
            bail!("--serve needs --room, or --load")
        };
        let bounds = WindowBounds::of(options, bus).await?;
        let snapshot = bounds.snapshot(bus, app, room).await;
        let source = PlaybackSource::Log {
            bus: Box::new(bus.clone()),
            until: WindowEnd::Seq(bounds.until.0),
        };
        let server = server(options, (app, room), source, bounds.after.0, snapshot.as_ref(), stop);
        return serve(server, listen_addrs(settings, ws), page).await;
    }
    if options.state {
        let ReplayTarget::Room(app, room) = options.target else {
            bail!("--state needs --room, or --load")
        };
        let now = || LogPoint::At(qiyu_nats::now_ms());
        let position = room_snapshot::position_of(bus, options.at.unwrap_or_else(now)).await?;
        let snapshot = RoomSnapshot::of_log(bus, app, room, position).await?;
        show(&snapshot, options.format);
        return Ok(());
    }
    let began = Instant::now();
    let selection = options.selection(bus).await?;
    progress(&format!("{}; from {}", selection.coverage(), reached.shown_url));
    let (start, until, read_mode) = (options.start(), options.until(), options.read_mode());
    let mut window = LogWindow::of_log(bus.clone(), selection.filters(), start, until, read_mode);
    let (pace, form) = (Pace::new(options.speed), options.form(&selection));
    let (over, _watched) = cancel_when_unread(stop);
    let told = print_window(&mut window, &selection, pace, form, options.patience, &over).await;
    let read = window.read();
    window.close().await;
    sum_up(told?, read, began);
    Ok(())
}

/// Runs the command line on a capsule.
async fn perform_kept(
    options: &ReplayOptions,
    capsule: Capsule,
    settings: &Config,
    page: Page,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    progress(&capsule.describe());
    if options.state {
        show(&capsule.snapshot(options.at)?, options.format);
        return Ok(());
    }
    let events = capsule.window(options.from, options.to);
    if let Some(url) = &options.into {
        let before = capsule.snapshot_before(options.from)?.as_ref().map(seed_events::seed_events);
        let source = sandbox::EventOrigin::Capsule { created_ns: &capsule.header.log.created_ns };
        let sandbox = Sandbox::open(url, &settings.log, source).await?;
        sandbox.make_way(capsule.header.app, capsule.header.room).await?;
        let mut window = LogWindow::Capsule(events.into_iter());
        let pace = Pace::new(options.speed);
        return sandbox.play(before.unwrap_or_default(), &mut window, pace, stop).await;
    }
    if let Some(ws) = options.serve {
        let snapshot = capsule.snapshot_before(options.from)?;
        let after = events.first().map_or(0, |entry| entry.seq.saturating_sub(1));
        let (whose, source) =
            ((capsule.header.app, capsule.header.room), PlaybackSource::Capsule(events));
        let server = server(options, whose, source, after, snapshot.as_ref(), stop);
        let server = PlaybackServer { name: capsule.name(), ..server };
        return serve(server, listen_addrs(settings, ws), page).await;
    }
    let selection = Selection::Room(capsule.header.app, capsule.header.room);
    let mut window = LogWindow::Capsule(events.into_iter());
    let (pace, form) = (Pace::new(options.speed), options.form(&selection));
    let (over, _watched) = cancel_when_unread(stop);
    let told = print_window(&mut window, &selection, pace, form, options.patience, &over).await?;
    sum_up(told, None, Instant::now());
    Ok(())
}

/// Appends a window of the log to a sandbox.
async fn pour(
    options: &ReplayOptions,
    bus: &Bus,
    url: &str,
    settings: &Config,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let sandbox = Sandbox::open(url, &settings.log, sandbox::EventOrigin::Log(bus)).await?;
    let bounds = WindowBounds::of(options, bus).await?;
    let mut before = Vec::new();
    if let ReplayTarget::Room(app, room) = options.target {
        sandbox.make_way(app, room).await?;
        let snapshot = bounds.snapshot(bus, app, room).await;
        before = snapshot.as_ref().map(seed_events::seed_events).unwrap_or_default();
    } else if options.from.is_some() {
        progress("what rooms were before --from is only told of one room: name it with --room");
    }
    let filters = options.selection(bus).await?.filters();
    let (from, until) = (ReadFrom::After(bounds.after.0), WindowEnd::Seq(bounds.until.0));
    let mut window = LogWindow::of_log(bus.clone(), filters, from, until, options.read_mode());
    let poured = sandbox.play(before, &mut window, Pace::new(options.speed), stop).await;
    window.close().await;
    poured
}

fn server(
    options: &ReplayOptions,
    (app, room): (AppId, RoomId),
    source: PlaybackSource,
    after: u64,
    snapshot: Option<&RoomSnapshot>,
    stop: &CancellationToken,
) -> PlaybackServer {
    PlaybackServer {
        source,
        app,
        room,
        name: snapshot.and_then(|snapshot| snapshot.name.clone()),
        after,
        before: snapshot.map(seed_events::seed_events).unwrap_or_default(),
        speed: options.speed,
        tasks: TaskTracker::new(),
        stop: stop.clone(),
    }
}

fn listen_addrs(settings: &Config, ws: SocketAddr) -> ListenAddrs {
    ListenAddrs { http: settings.http_listen, ws, origins: settings.origins.clone() }
}

async fn save(
    options: &ReplayOptions,
    (app, room): (AppId, RoomId),
    bus: &Bus,
    settings: &Config,
    path: &Path,
) -> anyhow::Result<()> {
    let bounds = WindowBounds::of(options, bus).await?;
    let start = bounds.snapshot(bus, app, room).await;
    let selection = Selection::Room(app, room);
    let mut filters = selection.filters();
    filters.push(subject::any_user_of(app, subject::UserKind::Sanctions));
    let (from, until) = (ReadFrom::After(bounds.after.0), WindowEnd::Seq(bounds.until.0));
    let mut window = LogWindow::of_log(bus.clone(), filters, from, until, ReadMode::Stream);
    let mut events = Vec::new();
    while let Some(entry) = window.next().await? {
        if EVENTS_MAX <= events.len() {
            bail!("the window holds over {EVENTS_MAX} events: save a shorter one");
        }
        events.push(entry);
    }
    window.close().await;
    let mut header = capsule::header(
        (app, room),
        bounds.after,
        bounds.until,
        &bus.log_identity().await?,
        &settings.masked,
    );
    header.start_known = start.is_some();
    header.redacted = options.words == TextPolicy::Redacted;
    let capsule = Capsule::of(header, start.as_ref(), events);
    let (path, words) = (path.to_owned(), options.words);
    let (capsule, saved) = tokio::task::spawn_blocking(move || {
        let saved = capsule.save(&path, words);
        (capsule, saved)
    })
    .await?;
    saved?;
    progress(&capsule.describe());
    Ok(())
}

/// The bounds of a window: the position and instant just before it, and its last.
#[derive(Clone, Copy, Debug)]
struct WindowBounds {
    after: (u64, u64),
    until: (u64, u64),
}

impl WindowBounds {
    async fn of(options: &ReplayOptions, bus: &Bus) -> anyhow::Result<Self> {
        let now = || LogPoint::At(qiyu_nats::now_ms());
        let after = match options.from {
            None => (0, 0),
            Some(LogPoint::At(unix_ms)) => {
                room_snapshot::position_of(bus, LogPoint::At(unix_ms.saturating_sub(1))).await?
            }
            Some(from) => {
                let (seq, at_ms) = room_snapshot::position_of(bus, from).await?;
                (seq.saturating_sub(1), at_ms)
            }
        };
        let until = room_snapshot::position_of(bus, options.to.unwrap_or_else(now)).await?;
        Ok(Self { after, until })
    }

    /// Reads the room's state at the beginning. `None`: the log has forgotten it.
    async fn snapshot(&self, bus: &Bus, app: AppId, room: RoomId) -> Option<RoomSnapshot> {
        match RoomSnapshot::of_log(bus, app, room, self.after).await {
            Ok(snapshot) => Some(snapshot),
            Err(error) => {
                progress(&format!("what the room was at the beginning is not known: {error:#}"));
                None
            }
        }
    }
}

fn show(snapshot: &RoomSnapshot, format: OutputFormat) {
    match format {
        OutputFormat::Json => print(&text::escape_json(snapshot.json())),
        OutputFormat::Pretty => print(&snapshot.pretty(ColorMode::of_stdout())),
    }
}

fn sum_up(told: PrintSummary, read: Option<u64>, began: Instant) {
    let took = began.elapsed().as_secs_f64();
    let PrintSummary { views, .. } = told;
    match read {
        Some(read) => progress(&format!(
            "{views} shown, out of {read} events read in {took:.3} s ({:.0} a second)",
            read as f64 / took
        )),
        None => progress(&format!("{views} shown")),
    }
}
