//! Selects a part of the log: the subjects to read, and the views to show of them.

use qiyu_nats::{
    Bus,
    log::{ReadError, ReadFrom},
};
use qiyu_schema::{
    AppId, Partition, RoomId, UserId,
    event::{Event, SessionChange},
    subject::{self, RoomKind},
};

use crate::log::event_view::{EventView, UnackedView};

/// The selected part of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// One room: its own subjects, and the ends of gateways in its partition.
    Room(AppId, RoomId),
    /// One user.
    User(AppId, UserId, Breadth),
    /// One app, or all of them.
    Everything(Option<AppId>),
}

/// How widely the actions of a user are searched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Breadth {
    /// In these rooms, which the user's logins name.
    Rooms(Vec<RoomId>),
    /// In all rooms of the app.
    Wide,
}

/// Rooms of a user that are read one by one; beyond it the whole app is read.
/// A consumer with hundreds of filters is slow to make (nats-server #4888).
const ROOMS_MAX: usize = 64;

/// The kinds read of each room a user was in.
const KINDS_OF_A_MEMBER: [RoomKind; 6] = [
    RoomKind::Msg,
    RoomKind::Members,
    RoomKind::Refused,
    RoomKind::Sanctions,
    RoomKind::Unacked,
    RoomKind::Biz,
];

impl Selection {
    /// Returns the subjects to read; empty means all. No two overlap: NATS refuses a
    /// consumer with overlapping filters. With a million events under 4000 subjects, a
    /// filter that matches nearly everything costs the server 40 µs an event. No filter
    /// costs 2.4 (measured, 2.15.1). So an app is selected by the reader, not by the
    /// server.
    pub(crate) fn filters(&self) -> Vec<String> {
        match self {
            Self::Room(app, room) => vec![
                subject::room_events(*app, *room),
                subject::any_gateway_gone_in(Partition::of_room(*app, *room)),
            ],
            Self::User(app, user, Breadth::Rooms(rooms)) => {
                let sessions = subject::sessions(Partition::of_user(*app, *user), *app);
                let mut filters = vec![
                    subject::user_events(*app, *user),
                    sessions,
                    subject::any_room_of(*app, RoomKind::Opened),
                    subject::any_room_of(*app, RoomKind::Closed),
                ];
                for room in rooms {
                    filters.extend(KINDS_OF_A_MEMBER.map(|kind| subject::room(*app, *room, kind)));
                }
                filters
            }
            Self::User(app, user, Breadth::Wide) => {
                let mut filters = vec![
                    subject::sessions(Partition::of_user(*app, *user), *app),
                    subject::user(*app, *user, subject::UserKind::Biz),
                    subject::user(*app, *user, subject::UserKind::Sanctions),
                    subject::any_user_of(*app, subject::UserKind::Msg),
                    subject::any_user_of(*app, subject::UserKind::Refused),
                    subject::any_room_of(*app, RoomKind::Opened),
                    subject::any_room_of(*app, RoomKind::Closed),
                ];
                filters.extend(KINDS_OF_A_MEMBER.map(|kind| subject::any_room_of(*app, kind)));
                filters
            }
            Self::Everything(_) => Vec::new(),
        }
    }

    /// Whether a view belongs to the selection.
    pub(crate) fn wants(&self, view: &EventView<'_>) -> bool {
        match self {
            Self::Room(..) | Self::Everything(None) => true,
            Self::Everything(Some(app)) => view.app.is_none_or(|of| of == *app),
            Self::User(_, user, _) => {
                let owes = |message: &UnackedView<'_>| {
                    message.users.as_ref().is_some_and(|users| users.contains(user))
                };
                view.user == Some(*user)
                    || view.to == Some(*user)
                    || view.by == Some(*user)
                    || view.messages.iter().flatten().any(owes)
            }
        }
    }

    /// Whether all lines are about the same room, so that none must name it.
    pub(crate) fn is_one_room(&self) -> bool {
        matches!(self, Self::Room(..))
    }

    /// Describes the coverage of the selection.
    pub(crate) fn coverage(&self) -> String {
        match self {
            Self::Room(app, room) => format!("room {room} of app {app}"),
            Self::User(app, user, Breadth::Rooms(rooms)) => format!(
                "user {user} of app {app}: logins, what was written to them, measures, and what \
                 they did in the rooms their logins name ({}); not what they wrote to single users, \
                 which --wide finds",
                rooms.len()
            ),
            Self::User(app, user, Breadth::Wide) => format!(
                "user {user} of app {app}: logins, measures, and all they said, wrote and were \
                 written, out of everybody's messages"
            ),
            Self::Everything(Some(app)) => format!("everything of app {app}"),
            Self::Everything(None) => "everything".to_owned(),
        }
    }
}

/// Finds the rooms a user joined, from the logins of the whole log; the whole app if they
/// are too many. A login names its room, and a connection never changes its room.
pub(crate) async fn rooms_of(bus: &Bus, app: AppId, user: UserId) -> Result<Breadth, ReadError> {
    let sessions = subject::sessions(Partition::of_user(app, user), app);
    let reader = bus.read_history(vec![sessions], ReadFrom::After(0)).await?;
    let mut reader = reader.to_present_end();
    let mut rooms = Vec::new();
    while let Some(entry) = reader.next().await? {
        let Ok(record) = entry.record() else { continue };
        let Event::SessionsChanged { changes, .. } = record.event else { continue };
        for change in changes {
            if let SessionChange::Online { user: who, room: Some(room), .. } = change
                && who == user
                && !rooms.contains(&room)
            {
                rooms.push(room);
            }
        }
    }
    reader.close().await;
    Ok(if rooms.len() <= ROOMS_MAX { Breadth::Rooms(rooms) } else { Breadth::Wide })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a subject can match both filters, by the rules of NATS.
    fn overlap(one: &str, other: &str) -> bool {
        let (mut one, mut other) = (one.split('.'), other.split('.'));
        loop {
            match (one.next(), other.next()) {
                (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
                _ => return false,
            }
        }
    }

    #[test]
    fn no_two_filters_overlap() {
        let (app, room, user): (AppId, RoomId, UserId) =
            ("10001".parse().unwrap(), "7".parse().unwrap(), "100002".parse().unwrap());
        let rooms = Breadth::Rooms(vec![room, "8".parse().unwrap()]);
        for selection in [
            Selection::Room(app, room),
            Selection::User(app, user, rooms),
            Selection::User(app, user, Breadth::Wide),
        ] {
            let filters = selection.filters();
            for (at, one) in filters.iter().enumerate() {
                for other in &filters[at + 1..] {
                    assert!(!overlap(one, other), "{one} and {other}");
                }
            }
        }
    }
}
