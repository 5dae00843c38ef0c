//! `qiyu replay`: the log again, for whoever has to find out what happened.

mod audience;
mod capsule;
mod happening;
mod into;
mod moment;
mod names;
mod pace;
mod play;
mod prelude;
mod pretty;
mod redact;
mod selection;
mod serve;
mod state;
mod tape;
mod text;
mod translate;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use qiyu_nats::{Bus, log::From};
use qiyu_schema::{AppId, RoomId, UserId, subject};
use time::OffsetDateTime;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::serve::Page;
use self::{
    audience::while_read,
    capsule::{Capsule, EVENTS_MAX, Words},
    into::Sandbox,
    moment::Moment,
    pace::{Pace, Speed},
    play::{Form, Patience, Told, play},
    pretty::{Colour, Layout, RoomColumn},
    selection::{Breadth, Selection},
    serve::{Doors, Film, Theatre, serve},
    state::Scene,
    tape::{Draught, Tape, Until},
};
use crate::{
    Config,
    access::LogAccess,
    format::Format,
    terminal::{print as say, progress as note},
};

/// What replay accepts.
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
        .arg(Format::arg("For people, or JSON lines (docs/DEBUGGING.md)"))
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

/// Does what the command line asks. Must be awaited on the main thread: see [`LogAccess::connect`].
pub async fn run(
    arguments: &ArgMatches,
    settings: &Config,
    page: Page,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let asked = Asked::read(arguments, settings)?;
    if let Some(path) = &asked.load {
        let capsule = Capsule::load(path)?;
        return Box::pin(perform_kept(&asked, capsule, settings, page, stop)).await;
    }
    let reached = LogAccess::connect(&settings.log).await?;
    let done = Box::pin(perform(&asked, &reached, settings, page, stop)).await;
    reached.close().await;
    done
}

/// Whom or what to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    Room(AppId, RoomId),
    User(AppId, UserId),
    Everything(Option<AppId>),
}

/// The command line, read.
#[derive(Debug)]
struct Asked {
    whom: Whom,
    from: Option<Moment>,
    to: Option<Moment>,
    speed: Speed,
    format: Format,
    patience: Patience,
    wide: bool,
    /// The room as it was, rather than what happened.
    state: bool,
    /// None: now, or at a capsule's end.
    at: Option<Moment>,
    /// Where to save a capsule.
    save: Option<PathBuf>,
    words: Words,
    /// Which capsule to read. None: the log.
    load: Option<PathBuf>,
    /// A sandbox to write into.
    into: Option<String>,
    /// Where to show the room.
    serve: Option<SocketAddr>,
}

impl Asked {
    fn read(arguments: &ArgMatches, settings: &Config) -> anyhow::Result<Self> {
        let now = OffsetDateTime::now_utc();
        let given = |name: &str| arguments.get_one::<String>(name).map(String::as_str);
        let moment = |name: &str| {
            let parse = |text| {
                Moment::parse(text, now)
                    .map_err(|accepted| anyhow::anyhow!("--{name} {text:?} is not {accepted}"))
            };
            given(name).map(parse).transpose()
        };
        let app = given("app").map(|app| app.parse::<AppId>().context("--app")).transpose()?;
        let first = settings.apps.first().copied();
        let some_app = || app.or(first).context("no app is known: name it with --app");
        let whom = match (given("room"), given("user")) {
            (Some(room), _) => Whom::Room(some_app()?, room.parse().context("--room")?),
            (None, Some(user)) => Whom::User(some_app()?, user.parse().context("--user")?),
            (None, None) => Whom::Everything(app),
        };
        let (from, to) = (moment("from")?, moment("to")?);
        let backwards = match (from, to) {
            (Some(Moment::Msg(from)), Some(Moment::Msg(to))) => to < from,
            (Some(Moment::At(from)), Some(Moment::At(to))) => to < from,
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
            whom,
            from,
            to,
            speed,
            format: Format::asked(arguments),
            patience: if follow { Patience::Live } else { Patience::Whole },
            wide: arguments.get_flag("wide"),
            state: arguments.get_flag("state"),
            at: moment("at")?,
            save: given("save").map(PathBuf::from),
            words: if arguments.get_flag("redact") { Words::Redacted } else { Words::Kept },
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

    fn start(&self) -> From {
        match self.from {
            None => From::After(0),
            Some(Moment::Msg(msg_id)) => From::After(msg_id.seq().saturating_sub(1)),
            Some(Moment::At(unix_ms)) => From::At { unix_ms },
        }
    }

    fn until(&self) -> Until {
        match (self.patience, self.to) {
            (Patience::Live, _) => Until::Never,
            (Patience::Whole, None) => Until::Here,
            (Patience::Whole, Some(Moment::Msg(msg_id))) => Until::Seq(msg_id.seq()),
            (Patience::Whole, Some(Moment::At(unix_ms))) => Until::At(unix_ms),
        }
    }

    fn draught(&self) -> Draught {
        match self.speed {
            Speed::Max => Draught::Flood,
            Speed::Times(_) => Draught::Sips,
        }
    }

    async fn selection(&self, bus: &Bus) -> anyhow::Result<Selection> {
        Ok(match self.whom {
            Whom::Room(app, room) => Selection::Room(app, room),
            Whom::Everything(app) => Selection::Everything(app),
            // A room entered later has no filter yet, so whoever follows looks everywhere.
            Whom::User(app, user) if self.wide || self.patience == Patience::Live => {
                Selection::User(app, user, Breadth::Wide)
            }
            Whom::User(app, user) => {
                let breadth = selection::rooms_of(bus, app, user).await;
                let breadth = breadth.with_context(|| format!("find the rooms of user {user}"))?;
                Selection::User(app, user, breadth)
            }
        })
    }

    fn form(&self, selection: &Selection) -> Form {
        match self.format {
            Format::Json => Form::Json,
            Format::Pretty => {
                let rooms =
                    if selection.is_one_room() { RoomColumn::Hidden } else { RoomColumn::Shown };
                Form::Pretty(Layout::new(pretty::columns(), Colour::of_stdout(), rooms))
            }
        }
    }
}

async fn perform(
    asked: &Asked,
    reached: &LogAccess,
    settings: &Config,
    page: Page,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let bus = &reached.bus;
    if let (Some(path), Whom::Room(app, room)) = (&asked.save, asked.whom) {
        return save(asked, (app, room), bus, settings, path).await;
    }
    if let Some(url) = &asked.into {
        return pour(asked, bus, url, settings, stop).await;
    }
    if let Some(ws) = asked.serve {
        let Whom::Room(app, room) = asked.whom else { bail!("--serve needs --room, or --load") };
        let window = Window::of(asked, bus).await?;
        let scene = window.scene(bus, app, room).await;
        let film = Film::Log { bus: Box::new(bus.clone()), until: Until::Seq(window.until.0) };
        let theatre = theatre(asked, (app, room), film, window.after.0, scene.as_ref(), stop);
        return serve(theatre, doors(settings, ws), page).await;
    }
    if asked.state {
        let Whom::Room(app, room) = asked.whom else { bail!("--state needs --room, or --load") };
        let now = || Moment::At(qiyu_nats::now_ms());
        let position = state::position_of(bus, asked.at.unwrap_or_else(now)).await?;
        let scene = Scene::of_log(bus, app, room, position).await?;
        show(&scene, asked.format);
        return Ok(());
    }
    let began = Instant::now();
    let selection = asked.selection(bus).await?;
    note(&format!("{}; from {}", selection.coverage(), reached.shown_url));
    let (start, until, draught) = (asked.start(), asked.until(), asked.draught());
    let mut tape = Tape::of_log(bus.clone(), selection.filters(), start, until, draught);
    let (pace, form) = (Pace::new(asked.speed), asked.form(&selection));
    let (over, _watched) = while_read(stop);
    let told = play(&mut tape, &selection, pace, form, asked.patience, &over).await;
    let read = tape.read();
    tape.close().await;
    sum_up(told?, read, began);
    Ok(())
}

/// The same out of a capsule.
async fn perform_kept(
    asked: &Asked,
    capsule: Capsule,
    settings: &Config,
    page: Page,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    note(&capsule.described());
    if asked.state {
        show(&capsule.scene(asked.at)?, asked.format);
        return Ok(());
    }
    let events = capsule.window(asked.from, asked.to);
    if let Some(url) = &asked.into {
        let before = capsule.scene_before(asked.from)?.as_ref().map(prelude::of);
        let source = into::Source::Capsule { created_ns: &capsule.header.log.created_ns };
        let sandbox = Sandbox::open(url, &settings.log, source).await?;
        sandbox.make_way(capsule.header.app, capsule.header.room).await?;
        let mut tape = Tape::Kept(events.into_iter());
        let pace = Pace::new(asked.speed);
        return sandbox.play(before.unwrap_or_default(), &mut tape, pace, stop).await;
    }
    if let Some(ws) = asked.serve {
        let scene = capsule.scene_before(asked.from)?;
        let after = events.first().map_or(0, |entry| entry.seq.saturating_sub(1));
        let (whose, film) = ((capsule.header.app, capsule.header.room), Film::Capsule(events));
        let theatre = theatre(asked, whose, film, after, scene.as_ref(), stop);
        let theatre = Theatre { name: capsule.name(), ..theatre };
        return serve(theatre, doors(settings, ws), page).await;
    }
    let selection = Selection::Room(capsule.header.app, capsule.header.room);
    let mut tape = Tape::Kept(events.into_iter());
    let (pace, form) = (Pace::new(asked.speed), asked.form(&selection));
    let (over, _watched) = while_read(stop);
    let told = play(&mut tape, &selection, pace, form, asked.patience, &over).await?;
    sum_up(told, None, Instant::now());
    Ok(())
}

/// A window of the log into a sandbox.
async fn pour(
    asked: &Asked,
    bus: &Bus,
    url: &str,
    settings: &Config,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let sandbox = Sandbox::open(url, &settings.log, into::Source::Log(bus)).await?;
    let window = Window::of(asked, bus).await?;
    let mut before = Vec::new();
    if let Whom::Room(app, room) = asked.whom {
        sandbox.make_way(app, room).await?;
        let scene = window.scene(bus, app, room).await;
        before = scene.as_ref().map(prelude::of).unwrap_or_default();
    } else if asked.from.is_some() {
        note("what rooms were before --from is only told of one room: name it with --room");
    }
    let filters = asked.selection(bus).await?.filters();
    let (from, until) = (From::After(window.after.0), Until::Seq(window.until.0));
    let mut tape = Tape::of_log(bus.clone(), filters, from, until, asked.draught());
    let poured = sandbox.play(before, &mut tape, Pace::new(asked.speed), stop).await;
    tape.close().await;
    poured
}

fn theatre(
    asked: &Asked,
    (app, room): (AppId, RoomId),
    film: Film,
    after: u64,
    scene: Option<&Scene>,
    stop: &CancellationToken,
) -> Theatre {
    Theatre {
        film,
        app,
        room,
        name: scene.and_then(|scene| scene.name.clone()),
        after,
        before: scene.map(prelude::of).unwrap_or_default(),
        speed: asked.speed,
        tasks: TaskTracker::new(),
        stop: stop.clone(),
    }
}

fn doors(settings: &Config, ws: SocketAddr) -> Doors {
    Doors { http: settings.http_listen, ws, origins: settings.origins.clone() }
}

async fn save(
    asked: &Asked,
    (app, room): (AppId, RoomId),
    bus: &Bus,
    settings: &Config,
    path: &Path,
) -> anyhow::Result<()> {
    let window = Window::of(asked, bus).await?;
    let start = window.scene(bus, app, room).await;
    let selection = Selection::Room(app, room);
    let mut filters = selection.filters();
    filters.push(subject::any_user_measures_of(app));
    let (from, until) = (From::After(window.after.0), Until::Seq(window.until.0));
    let mut tape = Tape::of_log(bus.clone(), filters, from, until, Draught::Flood);
    let mut events = Vec::new();
    while let Some(entry) = tape.next().await? {
        if EVENTS_MAX <= events.len() {
            bail!("the window holds over {EVENTS_MAX} events: save a shorter one");
        }
        events.push(entry);
    }
    tape.close().await;
    let mut header = capsule::header(
        (app, room),
        window.after,
        window.until,
        &bus.origin().await?,
        &settings.masked,
    );
    header.start_known = start.is_some();
    header.redacted = asked.words == Words::Redacted;
    let capsule = Capsule::of(header, start.as_ref(), events);
    let (path, words) = (path.to_owned(), asked.words);
    let (capsule, saved) = tokio::task::spawn_blocking(move || {
        let saved = capsule.save(&path, words);
        (capsule, saved)
    })
    .await?;
    saved?;
    note(&capsule.described());
    Ok(())
}

/// Where a window lies: the position and instant just before it, and its last.
#[derive(Clone, Copy, Debug)]
struct Window {
    after: (u64, u64),
    until: (u64, u64),
}

impl Window {
    async fn of(asked: &Asked, bus: &Bus) -> anyhow::Result<Self> {
        let now = || Moment::At(qiyu_nats::now_ms());
        let after = match asked.from {
            None => (0, 0),
            Some(Moment::At(unix_ms)) => {
                state::position_of(bus, Moment::At(unix_ms.saturating_sub(1))).await?
            }
            Some(from) => {
                let (seq, at_ms) = state::position_of(bus, from).await?;
                (seq.saturating_sub(1), at_ms)
            }
        };
        let until = state::position_of(bus, asked.to.unwrap_or_else(now)).await?;
        Ok(Self { after, until })
    }

    /// What the room was when it begins. `None`: that is forgotten.
    async fn scene(&self, bus: &Bus, app: AppId, room: RoomId) -> Option<Scene> {
        match Scene::of_log(bus, app, room, self.after).await {
            Ok(scene) => Some(scene),
            Err(error) => {
                note(&format!("what the room was at the beginning is not known: {error:#}"));
                None
            }
        }
    }
}

fn show(scene: &Scene, format: Format) {
    match format {
        Format::Json => say(&text::harmless_json(scene.json())),
        Format::Pretty => say(&scene.pretty(Colour::of_stdout())),
    }
}

fn sum_up(told: Told, read: Option<u64>, began: Instant) {
    let took = began.elapsed().as_secs_f64();
    let Told { happenings, .. } = told;
    match read {
        Some(read) => note(&format!(
            "{happenings} shown, out of {read} events read in {took:.3} s ({:.0} a second)",
            read as f64 / took
        )),
        None => note(&format!("{happenings} shown")),
    }
}
