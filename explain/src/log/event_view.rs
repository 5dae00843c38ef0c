//! Views of log events for printing. One stored event can hold many joins and leaves; each
//! becomes a view of its own.

use std::borrow::Cow;

use qiyu_nats::log::LogEntry;
use qiyu_schema::{
    AppId, ConnId, GatewayId, Incarnation, MsgId, RoomId, UserId,
    event::{DisconnectReason, Event, MemberChange, Record, Sender, SessionChange},
    sanction::SanctionKind,
};
use serde::{Deserialize, Serialize};

/// The kind of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EventKind {
    Opened,
    Closed,
    #[serde(rename = "said")]
    RoomMessage,
    #[serde(rename = "wrote")]
    DirectMessage,
    Business,
    Refused,
    Liked,
    Joined,
    Left,
    Online,
    Offline,
    Read,
    Unacknowledged,
    #[serde(rename = "gone")]
    GatewayGone,
    Muted,
    Kicked,
    Banned,
    Unmuted,
    Unbanned,
    /// A sanction or an event of a kind newer than this build.
    Unknown,
    /// Bytes that are not an event.
    Unreadable,
}

/// One entry of a replay. As JSON it is one line of `--format json`: names are only ever
/// added to it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventView<'a> {
    /// Position of the event in the log. Views of one event share it.
    #[serde(serialize_with = "as_text")]
    pub(crate) msg_id: MsgId,
    /// Time of storing by the server's clock, RFC 3339 in UTC.
    pub(crate) at: String,
    /// The same time in ms since 1970.
    pub(crate) at_ms: u64,
    pub(crate) kind: EventKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) app: Option<AppId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) room: Option<RoomId>,
    /// The acting or affected user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<UserId>,
    /// The recipient.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<UserId>,
    /// The user that closed the room or imposed the sanction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<GatewayView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connection: Option<ConnId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_msg_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) biz_code: Option<i32>,
    /// The sender's name, as recipients saw it, or the room's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<Cow<'a, str>>,
    /// The message text, if the data holds one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<Cow<'a, str>>,
    /// The complete data of a message, as stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) until_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) count: Option<u64>,
    /// Whether the connection requested the messages it had missed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resumed: Option<bool>,
    /// 1 ordinary, 2 pk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) room_type: Option<u8>,
    /// Messages read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) msg_ids: Option<Vec<String>>,
    /// Messages never acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) messages: Option<Vec<UnackedView<'a>>>,
    /// The subject, for events that cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<&'a str>,
}

/// An incarnation of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct GatewayView<'a> {
    pub(crate) id: &'a GatewayId,
    pub(crate) epoch: u64,
}

impl<'a> std::convert::From<&'a Incarnation> for GatewayView<'a> {
    fn from(life: &'a Incarnation) -> Self {
        Self { id: &life.id, epoch: life.epoch }
    }
}

/// A message that was not acknowledged.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UnackedView<'a> {
    #[serde(serialize_with = "as_text")]
    pub(crate) msg_id: MsgId,
    /// Absent: all members that the gateway had in the room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) users: Option<&'a [UserId]>,
    pub(crate) sends: u32,
}

fn as_text<S: serde::Serializer>(msg_id: &MsgId, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(msg_id)
}

/// Calls `tell` with each view of a log entry.
pub(crate) fn for_each_view(
    entry: &LogEntry,
    record: Option<&Record>,
    mut tell: impl FnMut(EventView<'_>),
) {
    let base = |kind| EventView::new(entry, kind);
    let Some(record) = record else {
        return tell(EventView { subject: Some(&entry.subject), ..base(EventKind::Unreadable) });
    };
    match &record.event {
        Event::RoomOpened { app, room, anchor, room_type, name, .. } => tell(EventView {
            user: Some(*anchor),
            name: Some(name.into()),
            room_type: Some(*room_type),
            ..base(EventKind::Opened).in_room(*app, *room)
        }),
        Event::RoomClosed { app, room, by, .. } => {
            tell(EventView { by: *by, ..base(EventKind::Closed).in_room(*app, *room) });
        }
        Event::RoomMessageSent { app, room, sender, biz_code, data } => {
            tell(
                base(EventKind::RoomMessage)
                    .in_room(*app, *room)
                    .from(sender)
                    .saying(*biz_code, data),
            );
        }
        Event::DirectMessageSent { app, to, sender, biz_code, data } => {
            let wrote = base(EventKind::DirectMessage).from(sender).saying(*biz_code, data);
            tell(EventView { app: Some(*app), to: Some(*to), ..wrote });
        }
        Event::BusinessSent { app, room, to, sender, biz_code, data } => tell(EventView {
            app: Some(*app),
            room: *room,
            to: *to,
            biz_code: Some(*biz_code),
            data: Some(data),
            ..base(EventKind::Business).from(sender)
        }),
        Event::ContentRefused { app, room, to, sender, biz_code, content, reason } => {
            tell(EventView {
                app: Some(*app),
                room: *room,
                to: *to,
                biz_code: Some(*biz_code),
                content: Some(content.into()),
                reason: Some(reason.into()),
                ..base(EventKind::Refused).from(sender)
            });
        }
        Event::RoomLiked { app, room, gateway, count } => tell(EventView {
            gateway: Some(gateway.into()),
            count: Some(*count),
            ..base(EventKind::Liked).in_room(*app, *room)
        }),
        Event::MembersChanged { app, room, gateway, changes } => {
            for change in changes {
                let base = |kind| EventView {
                    gateway: Some(gateway.into()),
                    ..base(kind).in_room(*app, *room)
                };
                let (connection, user, base) = match change {
                    MemberChange::Joined { connection, user, resumed } => {
                        let joined =
                            EventView { resumed: Some(*resumed), ..base(EventKind::Joined) };
                        (Some(*connection), Some(*user), joined)
                    }
                    MemberChange::Left { connection, user, .. } => {
                        (Some(*connection), Some(*user), base(EventKind::Left))
                    }
                    MemberChange::Unknown => (None, None, base(EventKind::Unknown)),
                };
                tell(EventView { connection, user, ..base });
            }
        }
        Event::SessionsChanged { app, gateway, changes } => {
            for change in changes {
                let gateway = Some(gateway.into());
                let base = |kind| EventView { app: Some(*app), gateway, ..base(kind) };
                tell(match change {
                    SessionChange::Online { connection, user, room } => EventView {
                        connection: Some(*connection),
                        user: Some(*user),
                        room: *room,
                        ..base(EventKind::Online)
                    },
                    SessionChange::Offline { connection, user, reason } => EventView {
                        connection: Some(*connection),
                        user: Some(*user),
                        reason: Some(ending(*reason).into()),
                        ..base(EventKind::Offline)
                    },
                    SessionChange::Read { user, msg_ids } => EventView {
                        user: Some(*user),
                        msg_ids: Some(msg_ids.iter().map(ToString::to_string).collect()),
                        ..base(EventKind::Read)
                    },
                    SessionChange::Unknown => base(EventKind::Unknown),
                });
            }
        }
        Event::Unacknowledged { app, room, gateway, messages, .. } => {
            let unacked = messages.iter().map(|message| UnackedView {
                msg_id: message.msg_id,
                users: message.users.as_deref(),
                sends: message.sends,
            });
            tell(EventView {
                gateway: Some(gateway.into()),
                messages: Some(unacked.collect()),
                ..base(EventKind::Unacknowledged).in_room(*app, *room)
            });
        }
        Event::GatewayGone { gateway } => {
            tell(EventView { gateway: Some(gateway.into()), ..base(EventKind::GatewayGone) });
        }
        Event::SanctionImposed { app, room, user, sanction, until_ms, reason, by } => {
            let kind = match sanction {
                SanctionKind::Mute => EventKind::Muted,
                SanctionKind::Kick => EventKind::Kicked,
                SanctionKind::Ban => EventKind::Banned,
                SanctionKind::Unknown => EventKind::Unknown,
            };
            tell(EventView {
                app: Some(*app),
                room: *room,
                user: Some(*user),
                by: *by,
                until_ms: *until_ms,
                reason: (!reason.is_empty()).then(|| reason.into()),
                ..base(kind)
            });
        }
        Event::SanctionLifted { app, room, user, sanction, by } => {
            let kind = match sanction {
                SanctionKind::Mute => EventKind::Unmuted,
                SanctionKind::Ban => EventKind::Unbanned,
                SanctionKind::Kick | SanctionKind::Unknown => EventKind::Unknown,
            };
            let lifted = EventView { app: Some(*app), room: *room, by: *by, ..base(kind) };
            tell(EventView { user: Some(*user), ..lifted });
        }
        Event::Unknown => {
            tell(EventView { subject: Some(&entry.subject), ..base(EventKind::Unknown) });
        }
    }
}

impl<'a> EventView<'a> {
    fn new(entry: &'a LogEntry, kind: EventKind) -> Self {
        Self {
            msg_id: entry.msg_id(),
            at: String::new(), // only JSON has it, and fills it in
            at_ms: entry.written_ms,
            kind,
            app: None,
            room: None,
            user: None,
            to: None,
            by: None,
            gateway: None,
            connection: None,
            client_msg_id: None,
            biz_code: None,
            name: None,
            content: None,
            data: None,
            reason: None,
            until_ms: None,
            count: None,
            resumed: None,
            room_type: None,
            msg_ids: None,
            messages: None,
            subject: None,
        }
    }

    fn in_room(self, app: AppId, room: RoomId) -> Self {
        Self { app: Some(app), room: Some(room), ..self }
    }

    fn from(self, sender: &'a Sender) -> Self {
        Self {
            user: sender.user,
            gateway: sender.gateway.as_ref().map(GatewayView::from),
            connection: sender.connection,
            client_msg_id: sender.client_msg_id.as_ref().map(|id| id.as_str()),
            ..self
        }
    }

    fn saying(self, biz_code: i32, data: &'a str) -> Self {
        /// The fields of a chat message that recipients see.
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Chat<'d> {
            #[serde(borrow, default)]
            content: Option<Cow<'d, str>>,
            #[serde(borrow, default)]
            sender_name: Option<Cow<'d, str>>,
        }
        let chat: Chat<'a> = serde_json::from_str(data).unwrap_or_default();
        let (content, name) = (chat.content, chat.sender_name);
        Self { biz_code: Some(biz_code), data: Some(data), content, name, ..self }
    }
}

fn ending(reason: DisconnectReason) -> &'static str {
    match reason {
        DisconnectReason::Other => "another reason",
        known => known.as_str(),
    }
}
