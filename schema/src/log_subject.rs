//! The subjects of the log `IM_IN` as a type: built from ids, and parsed back.

use std::fmt;

use crate::id::{AppId, GatewayId, Partition, RoomId, UserId};

/// Declares a kind of event and its last subject token.
macro_rules! kinds {
    ($(#[$attribute:meta])* $name:ident { $($(#[$doc:meta])* $kind:ident = $token:literal,)+ }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])* $kind,)+
        }

        impl $name {
            /// Returns the last token of the subjects of this kind.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $token,)+
                }
            }

            fn parse(token: &str) -> Option<Self> {
                match token {
                    $($token => Some(Self::$kind),)+
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// The kinds of events stored under a room.
    RoomKind {
        Opened = "opened",
        Closed = "closed",
        Msg = "msg",
        /// Connections joined and left.
        Members = "members",
        Likes = "likes",
        /// Business messages for an integrator's consumer.
        Biz = "biz",
        /// Messages stayed unacknowledged.
        Unacked = "unacked",
        /// Sanctions were imposed or lifted.
        Sanctions = "measures",
        /// A message was refused for its content.
        Refused = "refused",
    }
}

kinds! {
    /// The kinds of events stored under a user.
    UserKind {
        /// Direct messages.
        Msg = "msg",
        /// Business messages for an integrator's consumer.
        Biz = "biz",
        /// Sanctions in the whole app were imposed or lifted.
        Sanctions = "measures",
        /// A message was refused for its content.
        Refused = "refused",
    }
}

/// The subject of one entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogSubject {
    /// Events of a room.
    Room { app: AppId, room: RoomId, kind: RoomKind },
    /// Events of a user.
    User { app: AppId, user: UserId, kind: UserKind },
    /// Sessions of the users of an app in one partition. It holds no user id: a
    /// million users would be a million subjects, which a stream does not bear.
    Sessions { partition: Partition, app: AppId },
    /// The ends of one gateway's incarnations, as one partition receives them.
    GatewayGone { partition: Partition, gateway: GatewayId },
}

impl LogSubject {
    /// Parses a subject. `None`: it is not of the log, its partition is not that
    /// of its room or user, or its kind is newer than this build.
    pub fn parse(subject: &str) -> Option<Self> {
        let partition = Self::partition_of(subject)?;
        // No allocation: gaps and resumes look at every entry between two messages.
        let mut tokens = subject.split('.').skip(3);
        let mut next = || tokens.next();
        let parsed = match (next(), next(), next(), next(), next()) {
            (Some("gateway"), Some(gateway), Some("gone"), None, None) => {
                Self::GatewayGone { partition, gateway: gateway.parse().ok()? }
            }
            (Some(app), Some("user"), Some("sessions"), None, None) => {
                Self::Sessions { partition, app: app.parse().ok()? }
            }
            (Some(app), Some("room"), Some(room), Some(kind), None) => Self::Room {
                app: app.parse().ok()?,
                room: room.parse().ok()?,
                kind: RoomKind::parse(kind)?,
            },
            (Some(app), Some("user"), Some(user), Some(kind), None) => Self::User {
                app: app.parse().ok()?,
                user: user.parse().ok()?,
                kind: UserKind::parse(kind)?,
            },
            _ => return None,
        };
        (parsed.partition() == partition).then_some(parsed)
    }

    /// Returns the partition in a subject of the log, of any kind.
    pub fn partition_of(subject: &str) -> Option<Partition> {
        subject.strip_prefix("im.in.")?.split('.').next()?.parse().ok()
    }

    /// Returns the partition this subject lies in.
    pub fn partition(&self) -> Partition {
        match *self {
            Self::Room { app, room, .. } => Partition::of_room(app, room),
            Self::User { app, user, .. } => Partition::of_user(app, user),
            Self::Sessions { partition, .. } | Self::GatewayGone { partition, .. } => partition,
        }
    }

    /// Whether messages are stored under this subject, of a room or direct ones.
    pub fn is_message(&self) -> bool {
        matches!(
            self,
            Self::Room { kind: RoomKind::Msg, .. } | Self::User { kind: UserKind::Msg, .. }
        )
    }
}

impl fmt::Display for LogSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "im.in.{}.", self.partition())?;
        match self {
            Self::Room { app, room, kind } => write!(f, "{app}.room.{room}.{}", kind.as_str()),
            Self::User { app, user, kind } => write!(f, "{app}.user.{user}.{}", kind.as_str()),
            Self::Sessions { app, .. } => write!(f, "{app}.user.sessions"),
            Self::GatewayGone { gateway, .. } => write!(f, "gateway.{gateway}.gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_rooms_and_direct_messages_are_messages_and_nothing_else_is() {
        let app = AppId::try_from(10_001).unwrap();
        let (room, user) = (RoomId::try_from(7).unwrap(), UserId::try_from(10_009).unwrap());
        let of_room = |kind| LogSubject::Room { app, room, kind };
        let of_user = |kind| LogSubject::User { app, user, kind };
        assert!(of_room(RoomKind::Msg).is_message() && of_user(UserKind::Msg).is_message());
        assert!(!of_room(RoomKind::Closed).is_message());
        assert!(!of_user(UserKind::Sanctions).is_message());
    }

    fn subjects() -> Vec<LogSubject> {
        let app = "10001".parse().unwrap();
        let (room, user) = ("7".parse().unwrap(), "100002".parse().unwrap());
        let partition = "p07".parse().unwrap();
        vec![
            LogSubject::Room { app, room, kind: RoomKind::Msg },
            LogSubject::Room { app, room, kind: RoomKind::Sanctions },
            LogSubject::User { app, user, kind: UserKind::Msg },
            LogSubject::User { app, user, kind: UserKind::Refused },
            LogSubject::Sessions { partition, app },
            LogSubject::GatewayGone { partition, gateway: "gw-1".parse().unwrap() },
        ]
    }

    #[test]
    fn a_subject_is_parsed_back_from_its_text() {
        for subject in subjects() {
            assert_eq!(LogSubject::parse(&subject.to_string()), Some(subject));
        }
        let text = subjects()[0].to_string();
        assert!(text.ends_with(".10001.room.7.msg"), "{text}");
    }

    #[test]
    fn a_subject_outside_the_log_is_not_parsed() {
        let room = subjects()[0].to_string();
        let elsewhere = room.replace(&subjects()[0].partition().to_string(), "p64");
        let newer = room.replace(".msg", ".of_the_future");
        for bad in ["", "im.in.p07", "im.out.gw-1.1", "im.in.p07.10001.room.x.msg", &elsewhere] {
            assert_eq!(LogSubject::parse(bad), None, "{bad}");
        }
        assert_eq!(LogSubject::parse(&newer), None);
        assert_eq!(LogSubject::partition_of(&newer), Some(subjects()[0].partition()));
    }
}
