//! The state of a room at a point in the log, computed by the fold that delivers messages.

use std::{collections::BTreeSet, fmt::Write as _};

use anyhow::Context as _;
use qiyu_fanout::{
    fold::Fold,
    past,
    state::{Member, RoomState},
};
use qiyu_nats::{Bus, log::ReadFrom};
use qiyu_schema::{
    AppId, MsgId, Partition, RoomId, UserId,
    event::Event,
    sanction::{Sanction, SanctionEntry},
    subject::{self, RoomKind},
};
use serde::Serialize;

use super::point::LogPoint;
use crate::{
    terminal::{ColorMode, Style},
    text::escape,
    timestamp,
};

/// The state of a room right after an event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RoomSnapshot {
    pub(crate) app: AppId,
    pub(crate) room: RoomId,
    /// The last applied event of the whole log.
    pub(crate) position: MsgId,
    /// The requested instant; sanctions are evaluated at it.
    pub(crate) at_ms: u64,
    /// The name in the log's `opened` event, if the log still has it.
    pub(crate) name: Option<String>,
    /// `None`: the room is unknown, or forgotten.
    pub(crate) state: Option<RoomState>,
    /// Sanctions of the whole app against members.
    pub(crate) everywhere: Vec<(UserId, SanctionEntry)>,
}

/// Resolves a point to the last sequence that counts, and its instant.
pub(crate) async fn position_of(bus: &Bus, at: LogPoint) -> anyhow::Result<(u64, u64)> {
    let (_, last) = bus.log_bounds().await?;
    match at {
        LogPoint::Msg(msg_id) => {
            let entry = bus.read_one(msg_id).await?;
            let entry = entry
                .with_context(|| format!("there is no message {msg_id} in the log (any more)"))?;
            Ok((msg_id.seq(), entry.written_ms))
        }
        LogPoint::At(unix_ms) => {
            let after = ReadFrom::At { unix_ms: unix_ms + 1 };
            let mut reader = bus.read_history(Vec::new(), after).await?;
            let position = match reader.pending_at_start() {
                0 => last,
                _ => reader.next().await?.seq - 1,
            };
            reader.close().await;
            Ok((position, unix_ms))
        }
    }
}

impl RoomSnapshot {
    /// Reads the state right after `position`.
    pub(crate) async fn of_log(
        bus: &Bus,
        app: AppId,
        room: RoomId,
        (position, at_ms): (u64, u64),
    ) -> anyhow::Result<Self> {
        let fold = past::fold_at(bus, Partition::of_room(app, room), position).await?;
        let state = fold.room_state(app, room);
        let inside: BTreeSet<UserId> = match &state {
            Some(state) => state.members.iter().map(|member| member.user).collect(),
            None => BTreeSet::new(),
        };
        let partitions: BTreeSet<Partition> =
            inside.iter().map(|user| Partition::of_user(app, *user)).collect();
        let mut everywhere = Vec::new();
        for partition in partitions {
            let fold = past::measures_at(bus, app, partition, position).await?;
            let of_it = inside.iter().filter(|user| Partition::of_user(app, **user) == partition);
            let entries =
                of_it.filter_map(|user| Some((*user, fold.measures_in_app(app, *user)?.clone())));
            everywhere.extend(entries);
        }
        everywhere.sort_unstable_by_key(|(user, _)| *user);
        let opened = bus.read_last(&subject::room(app, room, RoomKind::Opened)).await?;
        let name = opened.and_then(|entry| match entry.record().ok()?.event {
            Event::RoomOpened { name, .. } => Some(name),
            _ => None,
        });
        let position = MsgId::at(position);
        Ok(Self { app, room, position, at_ms, name, state, everywhere })
    }

    /// Takes the state from `fold`.
    pub(crate) fn of_fold(
        fold: &Fold,
        (app, room): (AppId, RoomId),
        (position, at_ms): (MsgId, u64),
        name: Option<String>,
    ) -> Self {
        let state = fold.room_state(app, room);
        let inside: BTreeSet<UserId> = match &state {
            Some(state) => state.members.iter().map(|member| member.user).collect(),
            None => BTreeSet::new(),
        };
        let known = |user: UserId| Some((user, fold.measures_in_app(app, user)?.clone()));
        let everywhere = inside.into_iter().filter_map(known).collect();
        Self { app, room, position, at_ms, name, state, everywhere }
    }

    /// Returns the mutes and bans in force at that instant, of the room and of the app.
    fn measures(&self) -> impl Iterator<Item = Measure<'_>> {
        let here = self.state.iter().flat_map(|state| &state.measures).map(|m| (Scope::Room, m));
        let everywhere = self.everywhere.iter().map(|m| (Scope::App, m));
        here.chain(everywhere).flat_map(move |(scope, (user, entry))| {
            let named = [("mute", &entry.mute), ("ban", &entry.ban)];
            named.into_iter().filter_map(move |(measure, taken)| {
                let taken = taken.as_ref().filter(|taken| taken.is_active(self.at_ms))?;
                Some(Measure { measure, user: *user, scope, taken })
            })
        })
    }

    /// Formats one JSON object, documented in docs/DEBUGGING.md.
    pub(crate) fn json(&self) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Shown<'a> {
            app: AppId,
            room: RoomId,
            after: String,
            at: String,
            at_ms: u64,
            known: bool,
            open: bool,
            name: Option<&'a str>,
            host: Option<UserId>,
            host_inside: bool,
            host_gone_since_ms: Option<u64>,
            closed_by_msg_id: Option<String>,
            watch_num: u64,
            good_num: u64,
            members: Vec<Inside<'a>>,
            measures: Vec<Held<'a>>,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Inside<'a> {
            user: UserId,
            gateway: &'a qiyu_schema::Incarnation,
            connection: qiyu_schema::ConnId,
            joined: String,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Held<'a> {
            measure: &'static str,
            user: UserId,
            everywhere: bool,
            until_ms: Option<u64>,
            reason: &'a str,
            by: Option<UserId>,
            msg_id: String,
        }
        let state = self.state.as_ref();
        let inside = |member: &'_ Member| member.user;
        let host = state.and_then(|state| state.anchor);
        let members = state.map(|state| state.members.as_slice()).unwrap_or_default();
        let shown = Shown {
            app: self.app,
            room: self.room,
            after: self.position.to_string(),
            at: timestamp::rfc3339(self.at_ms),
            at_ms: self.at_ms,
            known: state.is_some(),
            open: self.is_open(),
            name: self.name.as_deref(),
            host,
            host_inside: host.is_some_and(|host| members.iter().map(inside).any(|u| u == host)),
            host_gone_since_ms: state.and_then(|state| state.anchor_gone_ms),
            closed_by_msg_id: state.and_then(|s| s.closed).map(|(msg_id, _)| msg_id.to_string()),
            watch_num: state.map(|state| state.counts.watch_num).unwrap_or_default(),
            good_num: state.map(|state| state.counts.good_num).unwrap_or_default(),
            members: members
                .iter()
                .map(|Member { user, gateway, connection, joined }| Inside {
                    user: *user,
                    gateway,
                    connection: *connection,
                    joined: joined.to_string(),
                })
                .collect(),
            measures: self
                .measures()
                .map(|Measure { measure, user, scope, taken }| Held {
                    measure,
                    user,
                    everywhere: scope == Scope::App,
                    until_ms: taken.until_ms,
                    reason: &taken.reason,
                    by: taken.by,
                    msg_id: taken.msg_id.to_string(),
                })
                .collect(),
        };
        serde_json::to_string(&shown).unwrap_or_default()
    }

    fn is_open(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.closed.is_none() && state.anchor.is_some())
    }

    /// Formats the state as text.
    pub(crate) fn pretty(&self, color: ColorMode) -> String {
        let mut text = String::new();
        let title = format!(
            "room {} of app {} right after {} ({})",
            self.room,
            self.app,
            self.position,
            timestamp::rfc3339(self.at_ms)
        );
        writeln!(text, "{}", color.paint(Style::Bold, &title)).ok();
        let Some(state) = &self.state else {
            text += "  unknown: never opened by then, or closed and forgotten\n";
            return text;
        };
        let mut row = |label: &str, value: &str| {
            writeln!(text, "  {label:<9} {}", escape(value)).ok();
        };
        match (state.closed, state.anchor) {
            (Some((msg_id, at_ms)), _) => {
                row("closed", &format!("at {} by {msg_id}", timestamp::rfc3339(at_ms)));
            }
            (None, Some(_)) => {
                let name = self.name.as_deref().filter(|name| !name.is_empty());
                row("open", name.unwrap_or("(its name is not in the log)"));
            }
            (None, None) => row("open?", "its opening is not in the log any more"),
        }
        if let Some(host) = state.anchor {
            let inside = state.members.iter().any(|member| member.user == host);
            let gone = state.anchor_gone_ms.map(timestamp::rfc3339);
            row(
                "host",
                &match (inside, gone) {
                    (true, _) => format!("{host}, inside"),
                    (false, Some(since)) => format!("{host}, gone since {since}"),
                    (false, None) => format!("{host}, not inside"),
                },
            );
        }
        row("watching", &state.counts.watch_num.to_string());
        row("likes", &state.counts.good_num.to_string());
        for Member { user, gateway, connection, joined } in &state.members {
            row("member", &format!("{user} on {gateway} #{connection}, since {joined}"));
        }
        for Measure { measure, user, scope, taken } in self.measures() {
            let until = taken.until_ms.map_or("until lifted".to_owned(), |until| {
                format!("until {}", timestamp::rfc3339(until))
            });
            let by = taken.by.map_or("the server API".to_owned(), |by| by.to_string());
            let scope = if scope == Scope::App { "everywhere, " } else { "" };
            let reason = match taken.reason.as_str() {
                "" => String::new(),
                reason => format!(": {reason}"),
            };
            row(measure, &format!("{user} {scope}{until}, by {by} ({}){reason}", taken.msg_id));
        }
        text
    }
}

/// A mute or a ban in force.
struct Measure<'a> {
    measure: &'static str,
    user: UserId,
    scope: Scope,
    taken: &'a Sanction,
}

/// The scope of a sanction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Room,
    App,
}
