//! Lays out views as lines of text, within the terminal's width and with all text escaped.

#[cfg(test)]
mod golden;

use std::fmt::Write as _;

use qiyu_schema::{AppId, UserId};

use super::names::DisplayNames;
use crate::{
    log::event_view::{EventKind, EventView, GatewayView, UnackedView},
    terminal::{ColorMode, Style},
    text::{escape, truncate, width, wrap},
    timestamp,
};

/// Width when the output is not a terminal, or does not report its width.
const COLUMNS: usize = 80;
/// Minimum width: below it the columns leave no room for the text.
const COLUMNS_MIN: usize = 60;
/// Maximum width, because longer lines are hard to read.
const COLUMNS_MAX: usize = 160;
const DAY_MS: u64 = 24 * 3600 * 1000;
const TIME: usize = 12;
const VERB: usize = 9;
const NAME: usize = 12;
/// Minimum columns in which a text begins on the first line.
const FIRST_MIN: usize = 8;
/// The column at which the text begins.
const TEXT: usize = TIME + 2 + VERB + 1 + NAME + 1;

/// Returns the columns of the terminal.
pub(crate) fn columns() -> usize {
    let window = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    let columns = window.map(|window| usize::from(window.ws_col)).filter(|columns| 0 < *columns);
    columns.unwrap_or(COLUMNS).clamp(COLUMNS_MIN, COLUMNS_MAX)
}

/// The layout of the lines.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) columns: usize,
    pub(crate) color: ColorMode,
    /// Whether every line names its room.
    pub(crate) rooms: RoomColumn,
    /// The day of the last line, in days since 1970.
    day: Option<u64>,
}

/// Whether lines name their room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoomColumn {
    Shown,
    Hidden,
}

impl Layout {
    pub(crate) fn new(columns: usize, color: ColorMode, rooms: RoomColumn) -> Self {
        Self { columns, color, rooms, day: None }
    }

    /// Appends the lines of one view, after a line for the day when it changes.
    pub(crate) fn write(&mut self, out: &mut String, view: &EventView<'_>, names: &DisplayNames) {
        let day = view.at_ms / DAY_MS;
        if self.day != Some(day) {
            let line = format!("{} (UTC)", timestamp::day(view.at_ms));
            out.push_str(&self.color.paint(Style::Bold, &line));
            out.push('\n');
            self.day = Some(day);
        }
        let (verb, style) = verb(view.kind);
        let (who, text) = (who(view, names), text(view, names));
        let text = match (self.rooms, view.room) {
            (RoomColumn::Shown, Some(room)) => format!("room {room}: {text}"),
            _ => text,
        };
        let text = escape(text.trim_end_matches([' ', ':']));
        let who = cut_name(&who);
        let id = view.msg_id.to_string();
        let from = TEXT + width(&who).saturating_sub(NAME);
        let first = self.columns.saturating_sub(from + 2 + id.len());
        let further = self.columns - TEXT;
        let lines = match first {
            // With a long number on a narrow terminal the text begins below it.
            0..FIRST_MIN => [vec![String::new()], wrap(&text, further, further)].concat(),
            first => wrap(&text, first, further),
        };
        let pad = |text: &str, columns: usize| " ".repeat(columns.saturating_sub(width(text)));
        let time = timestamp::time_of_day(view.at_ms);
        let paint = |style, text| self.color.paint(style, text);
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

fn verb(kind: EventKind) -> (&'static str, Style) {
    match kind {
        EventKind::Opened => ("opened", Style::Bold),
        EventKind::Closed => ("closed", Style::Bold),
        EventKind::RoomMessage => ("said", Style::Good),
        EventKind::DirectMessage => ("wrote", Style::Good),
        EventKind::Business => ("business", Style::Good),
        EventKind::Refused => ("refused", Style::Bad),
        EventKind::Liked => ("liked", Style::Dim),
        EventKind::Joined => ("joined", Style::Notice),
        EventKind::Left => ("left", Style::Notice),
        EventKind::Online => ("online", Style::Notice),
        EventKind::Offline => ("offline", Style::Notice),
        EventKind::Read => ("read", Style::Dim),
        EventKind::Unacknowledged => ("unacked", Style::Bad),
        EventKind::GatewayGone => ("gone", Style::Bad),
        EventKind::Muted => ("muted", Style::Bad),
        EventKind::Kicked => ("kicked", Style::Bad),
        EventKind::Banned => ("banned", Style::Bad),
        EventKind::Unmuted => ("unmuted", Style::Notice),
        EventKind::Unbanned => ("unbanned", Style::Notice),
        EventKind::Unknown => ("unknown", Style::Bad),
        EventKind::Unreadable => ("unread", Style::Bad),
    }
}

/// Returns the text of the name column.
fn who(view: &EventView<'_>, names: &DisplayNames) -> String {
    match (view.user, view.gateway, view.kind) {
        (Some(user), ..) => match (&view.name, view.kind) {
            // A message holds its sender's name.
            (Some(name), EventKind::RoomMessage | EventKind::DirectMessage) if !name.is_empty() => {
                name.to_string()
            }
            _ => called(names, view.app, user),
        },
        (None, Some(_), EventKind::Liked | EventKind::Unacknowledged) => String::new(),
        (None, Some(gateway), _) => gateway.id.to_string(),
        (
            None,
            None,
            EventKind::RoomMessage
            | EventKind::DirectMessage
            | EventKind::Business
            | EventKind::Refused,
        ) => "(the system)".to_owned(),
        (None, None, _) => view.by.map(|by| called(names, view.app, by)).unwrap_or_default(),
    }
}

/// Returns a user's name, or the number, which is never cut.
fn called(names: &DisplayNames, app: Option<AppId>, user: UserId) -> String {
    names.of(app, user).map_or_else(|| user.to_string(), str::to_owned)
}

/// Truncates names but not numbers: half a number is another number.
fn cut_name(name: &str) -> String {
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return name.to_owned();
    }
    truncate(&escape(name), NAME).into_owned()
}

fn text(view: &EventView<'_>, names: &DisplayNames) -> String {
    let app = view.app;
    let name = |user| called(names, app, user);
    let to = |text: &str| match view.to {
        Some(to) => format!("to {}: {text}", name(to)),
        None => text.to_owned(),
    };
    let spoken = || {
        let content = view.content.as_deref().or(view.data).unwrap_or_default();
        match view.biz_code {
            Some(5555) | None => to(content),
            Some(code) => to(&format!("[{code}] {content}")),
        }
    };
    let reason = || view.reason.as_deref().unwrap_or_default();
    // Where the name column shows the number, the text omits it.
    let user = || match view.user.filter(|user| names.of(app, *user).is_some()) {
        Some(user) => format!("user {user} "),
        None => String::new(),
    };
    match view.kind {
        EventKind::Opened => {
            let kind = if view.room_type == Some(2) { "pk room" } else { "the room" };
            format!("{kind} {:?}", view.name.as_deref().unwrap_or_default())
        }
        EventKind::Closed => match view.by {
            Some(_) => "the room".to_owned(),
            None => "the system closed the room".to_owned(),
        },
        EventKind::RoomMessage | EventKind::DirectMessage | EventKind::Business => spoken(),
        EventKind::Refused => format!("{} ({})", spoken(), reason()),
        EventKind::Liked => match view.count {
            Some(1) => "once".to_owned(),
            count => format!("{} times", count.unwrap_or_default()),
        },
        EventKind::Joined if view.resumed == Some(true) => {
            format!("{}on {}, came back", user(), line(view))
        }
        EventKind::Joined | EventKind::Left | EventKind::Online => {
            format!("{}on {}", user(), line(view))
        }
        EventKind::Offline => format!("{}on {}: {}", user(), line(view), reason()),
        EventKind::Read => view.msg_ids.as_deref().unwrap_or_default().join(" "),
        EventKind::Unacknowledged => unacked(view, &name),
        EventKind::GatewayGone => {
            let epoch = view.gateway.map(|GatewayView { epoch, .. }| epoch).unwrap_or_default();
            format!("the gateway's life {epoch} is over")
        }
        EventKind::Muted
        | EventKind::Banned
        | EventKind::Kicked
        | EventKind::Unmuted
        | EventKind::Unbanned => measure(view, &name),
        EventKind::Unknown => "an event of a kind newer than this build".to_owned(),
        EventKind::Unreadable => {
            format!("no event: {}", view.subject.unwrap_or_default())
        }
    }
}

/// `gw-1 #12`: gateway and connection.
fn line(view: &EventView<'_>) -> String {
    let gateway = view.gateway.map(|gateway| gateway.id.to_string()).unwrap_or_default();
    match view.connection {
        Some(connection) => format!("{gateway} #{connection}"),
        None => gateway,
    }
}

fn unacked(view: &EventView<'_>, name: &impl Fn(UserId) -> String) -> String {
    let one = |UnackedView { msg_id, users, sends }: &UnackedView<'_>| {
        let users = match users {
            Some(users) => users.iter().map(|user| name(*user)).collect::<Vec<_>>().join(", "),
            None => "whoever was there".to_owned(),
        };
        format!("{msg_id} by {users} (sent {sends}x)")
    };
    let messages = view.messages.iter().flatten().map(one).collect::<Vec<_>>().join("; ");
    format!("on {}: {messages}", line(view))
}

fn measure(view: &EventView<'_>, name: &impl Fn(UserId) -> String) -> String {
    let by = view.by.map_or_else(|| "the server API".to_owned(), name);
    let mut text = format!("by {by}");
    if view.room.is_none() {
        text += ", everywhere";
    }
    match (view.kind, view.until_ms) {
        (EventKind::Muted | EventKind::Banned, Some(until)) => {
            text += &format!(", until {}", timestamp::rfc3339(until))
        }
        (EventKind::Muted | EventKind::Banned, None) => text += ", until lifted",
        _ => {}
    }
    if let Some(reason) = &view.reason {
        text += &format!(": {reason}");
    }
    text
}
