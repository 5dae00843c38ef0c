//! The log for people: aligned, in as many columns as there are, nothing active.

#[cfg(test)]
mod golden;

use std::{borrow::Cow, fmt::Write as _, io::IsTerminal as _};

use qiyu_schema::{AppId, UserId};

use super::{
    happening::{Gateway, Happening, Kind, Unacked},
    moment,
    names::Names,
    text::{cut, harmless, width, wrapped},
};

/// Where the output is no terminal, or does not say how wide it is.
const COLUMNS: usize = 80;
/// Narrower than this the columns below leave no room for what was said.
const COLUMNS_MIN: usize = 60;
/// A line longer than this is hard to read back.
const COLUMNS_MAX: usize = 160;
const DAY_MS: u64 = 24 * 3600 * 1000;
const TIME: usize = 12;
const VERB: usize = 9;
const NAME: usize = 12;
/// Fewer columns than this are not worth beginning a text in.
const FIRST_MIN: usize = 8;
/// Where what was said begins.
const TEXT: usize = TIME + 2 + VERB + 1 + NAME + 1;

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    On,
    Off,
}

impl Colour {
    /// On a terminal that does not ask for none (no-color.org).
    pub(crate) fn of_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let wanted = std::io::stdout().is_terminal() && !unwanted && !dumb;
        if wanted { Self::On } else { Self::Off }
    }

    pub(crate) fn paint<'t>(self, style: Style, text: &'t str) -> Cow<'t, str> {
        match self {
            Self::Off => Cow::Borrowed(text),
            Self::On => Cow::Owned(format!("\x1b[{}m{text}\x1b[0m", style.sgr())),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Style {
    Dim,
    Bold,
    Good,
    Notice,
    Bad,
    Name,
}

impl Style {
    fn sgr(self) -> &'static str {
        match self {
            Self::Dim => "2",
            Self::Bold => "1",
            Self::Good => "32",
            Self::Notice => "33",
            Self::Bad => "31",
            Self::Name => "36",
        }
    }
}

/// Columns of the terminal.
pub(crate) fn columns() -> usize {
    let window = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    let columns = window.map(|window| usize::from(window.ws_col)).filter(|columns| 0 < *columns);
    columns.unwrap_or(COLUMNS).clamp(COLUMNS_MIN, COLUMNS_MAX)
}

/// How happenings are laid out.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) columns: usize,
    pub(crate) colour: Colour,
    /// Every line names its room.
    pub(crate) rooms: RoomColumn,
    /// Days since 1970 of the last line.
    day: Option<u64>,
}

/// Whether lines name their room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoomColumn {
    Shown,
    Hidden,
}

impl Layout {
    pub(crate) fn new(columns: usize, colour: Colour, rooms: RoomColumn) -> Self {
        Self { columns, colour, rooms, day: None }
    }

    /// Appends the lines of one happening, after the day's, when that is new.
    pub(crate) fn write(&mut self, out: &mut String, happening: &Happening<'_>, names: &Names) {
        let day = happening.at_ms / DAY_MS;
        if self.day != Some(day) {
            let line = format!("{} (UTC)", moment::day(happening.at_ms));
            out.push_str(&self.colour.paint(Style::Bold, &line));
            out.push('\n');
            self.day = Some(day);
        }
        let (verb, style) = verb(happening.kind);
        let (who, text) = (who(happening, names), text(happening, names));
        let text = match (self.rooms, happening.room) {
            (RoomColumn::Shown, Some(room)) => format!("room {room}: {text}"),
            _ => text,
        };
        let text = harmless(text.trim_end_matches([' ', ':']));
        let who = cut_name(&who);
        let id = happening.msg_id.to_string();
        let from = TEXT + width(&who).saturating_sub(NAME);
        let first = self.columns.saturating_sub(from + 2 + id.len());
        let further = self.columns - TEXT;
        let lines = match first {
            // A long number on a narrow terminal: the text begins below it.
            0..FIRST_MIN => [vec![String::new()], wrapped(&text, further, further)].concat(),
            first => wrapped(&text, first, further),
        };
        let pad = |text: &str, columns: usize| " ".repeat(columns.saturating_sub(width(text)));
        let time = moment::time_of_day(happening.at_ms);
        let paint = |style, text| self.colour.paint(style, text);
        write!(
            out,
            "{}  {}{} {}{} {}{}  {}",
            paint(Style::Dim, &time),
            paint(style, verb),
            pad(verb, VERB),
            paint(Style::Name, &who),
            pad(&who, NAME),
            lines[0],
            pad(&lines[0], first),
            paint(Style::Dim, &id),
        )
        .ok();
        out.push('\n');
        for line in &lines[1..] {
            writeln!(out, "{:TEXT$}{line}", "").ok();
        }
    }
}

fn verb(kind: Kind) -> (&'static str, Style) {
    match kind {
        Kind::Opened => ("opened", Style::Bold),
        Kind::Closed => ("closed", Style::Bold),
        Kind::Said => ("said", Style::Good),
        Kind::Wrote => ("wrote", Style::Good),
        Kind::Business => ("business", Style::Good),
        Kind::Refused => ("refused", Style::Bad),
        Kind::Liked => ("liked", Style::Dim),
        Kind::Joined => ("joined", Style::Notice),
        Kind::Left => ("left", Style::Notice),
        Kind::Online => ("online", Style::Notice),
        Kind::Offline => ("offline", Style::Notice),
        Kind::Read => ("read", Style::Dim),
        Kind::Unacknowledged => ("unacked", Style::Bad),
        Kind::Gone => ("gone", Style::Bad),
        Kind::Muted => ("muted", Style::Bad),
        Kind::Kicked => ("kicked", Style::Bad),
        Kind::Banned => ("banned", Style::Bad),
        Kind::Unmuted => ("unmuted", Style::Notice),
        Kind::Unbanned => ("unbanned", Style::Notice),
        Kind::Unknown => ("unknown", Style::Bad),
        Kind::Unreadable => ("unread", Style::Bad),
    }
}

/// The name column: whom the line is about.
fn who(happening: &Happening<'_>, names: &Names) -> String {
    match (happening.user, happening.gateway, happening.kind) {
        (Some(user), ..) => match (&happening.name, happening.kind) {
            // A message says itself what its sender is called.
            (Some(name), Kind::Said | Kind::Wrote) if !name.is_empty() => name.to_string(),
            _ => called(names, happening.app, user),
        },
        (None, Some(_), Kind::Liked | Kind::Unacknowledged) => String::new(),
        (None, Some(gateway), _) => gateway.id.to_string(),
        (None, None, Kind::Said | Kind::Wrote | Kind::Business | Kind::Refused) => {
            "(the system)".to_owned()
        }
        (None, None, _) => {
            happening.by.map(|by| called(names, happening.app, by)).unwrap_or_default()
        }
    }
}

/// What a user is called, or their number, which is never cut.
fn called(names: &Names, app: Option<AppId>, user: UserId) -> String {
    names.of(app, user).map_or_else(|| user.to_string(), str::to_owned)
}

/// Names are cut, numbers are not: half a number is another number.
fn cut_name(name: &str) -> String {
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return name.to_owned();
    }
    cut(&harmless(name), NAME).into_owned()
}

fn text(happening: &Happening<'_>, names: &Names) -> String {
    let app = happening.app;
    let name = |user| called(names, app, user);
    let to = |text: &str| match happening.to {
        Some(to) => format!("to {}: {text}", name(to)),
        None => text.to_owned(),
    };
    let spoken = || {
        let content = happening.content.as_deref().or(happening.data).unwrap_or_default();
        match happening.biz_code {
            Some(5555) | None => to(content),
            Some(code) => to(&format!("[{code}] {content}")),
        }
    };
    let reason = || happening.reason.as_deref().unwrap_or_default();
    // Where the name column shows the number, it is not said twice.
    let user = || match happening.user.filter(|user| names.of(app, *user).is_some()) {
        Some(user) => format!("user {user} "),
        None => String::new(),
    };
    match happening.kind {
        Kind::Opened => {
            let kind = if happening.room_type == Some(2) { "pk room" } else { "the room" };
            format!("{kind} {:?}", happening.name.as_deref().unwrap_or_default())
        }
        Kind::Closed => match happening.by {
            Some(_) => "the room".to_owned(),
            None => "the system closed the room".to_owned(),
        },
        Kind::Said | Kind::Wrote | Kind::Business => spoken(),
        Kind::Refused => format!("{} ({})", spoken(), reason()),
        Kind::Liked => match happening.count {
            Some(1) => "once".to_owned(),
            count => format!("{} times", count.unwrap_or_default()),
        },
        Kind::Joined if happening.resumed == Some(true) => {
            format!("{}on {}, came back", user(), line(happening))
        }
        Kind::Joined | Kind::Left | Kind::Online => format!("{}on {}", user(), line(happening)),
        Kind::Offline => format!("{}on {}: {}", user(), line(happening), reason()),
        Kind::Read => happening.msg_ids.as_deref().unwrap_or_default().join(" "),
        Kind::Unacknowledged => unacked(happening, &name),
        Kind::Gone => {
            let epoch = happening.gateway.map(|Gateway { epoch, .. }| epoch).unwrap_or_default();
            format!("the gateway's life {epoch} is over")
        }
        Kind::Muted | Kind::Banned | Kind::Kicked | Kind::Unmuted | Kind::Unbanned => {
            measure(happening, &name)
        }
        Kind::Unknown => "an event of a kind newer than this build".to_owned(),
        Kind::Unreadable => {
            format!("no event: {}", happening.subject.unwrap_or_default())
        }
    }
}

/// `gw-1 #12`: gateway and connection.
fn line(happening: &Happening<'_>) -> String {
    let gateway = happening.gateway.map(|gateway| gateway.id.to_string()).unwrap_or_default();
    match happening.connection {
        Some(connection) => format!("{gateway} #{connection}"),
        None => gateway,
    }
}

fn unacked(happening: &Happening<'_>, name: &impl Fn(UserId) -> String) -> String {
    let one = |Unacked { msg_id, users, sends }: &Unacked<'_>| {
        let users = match users {
            Some(users) => users.iter().map(|user| name(*user)).collect::<Vec<_>>().join(", "),
            None => "whoever was there".to_owned(),
        };
        format!("{msg_id} by {users} (sent {sends}x)")
    };
    let messages = happening.messages.iter().flatten().map(one).collect::<Vec<_>>().join("; ");
    format!("on {}: {messages}", line(happening))
}

fn measure(happening: &Happening<'_>, name: &impl Fn(UserId) -> String) -> String {
    let by = happening.by.map_or_else(|| "the server API".to_owned(), name);
    let mut text = format!("by {by}");
    if happening.room.is_none() {
        text += ", everywhere";
    }
    match (happening.kind, happening.until_ms) {
        (Kind::Muted | Kind::Banned, Some(until)) => {
            text += &format!(", until {}", moment::shown(until))
        }
        (Kind::Muted | Kind::Banned, None) => text += ", until lifted",
        _ => {}
    }
    if let Some(reason) = &happening.reason {
        text += &format!(": {reason}");
    }
    text
}
