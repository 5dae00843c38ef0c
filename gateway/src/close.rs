//! The close reasons: code, text, recorded reason and farewell of every way in
//! which the gateway ends a connection.

use std::{borrow::Cow, time::Duration};

use qiyu_schema::event::DisconnectReason;

/// A control frame carries 125 bytes, and 2 of them are the code.
const TEXT_BYTES_MAX: usize = 123;

/// The reason why a connection is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The client logged out.
    Logout,
    /// Wrong magic, a wrong length, or a WebSocket that breaks its protocol.
    BadFraming(Cow<'static, str>),
    BinaryFrame,
    NotUtf8,
    BodyTooLarge,
    MessageTooLarge,
    /// The gateway drains or its incarnation has ended. The client comes back
    /// after `retry_after`, so that not all come back at once.
    Draining {
        retry_after: Duration,
    },
    /// The incarnation ended during the login.
    EndedDuringLogin,
    SlowReader,
    /// The client sent nothing for the idle timeout.
    Idle,
    LoginNotStored,
    /// The gateway could not renew its lease for long, so nothing was stored.
    Suspended {
        retry_after: Duration,
    },
    /// `reason` is the moderator's, and may be empty.
    Kicked {
        reason: String,
    },
    /// A newer login of the same user ended this connection.
    Replaced,
    /// `reason` is the moderator's, and may be empty.
    Banned {
        reason: String,
    },
    /// The client sent a frame code that does not exist.
    UnknownCode,
    /// The socket is gone. Nothing is sent.
    Disconnected,
    /// A playback stopped. Only viewers of a recording receive it.
    PlaybackStopped,
}

/// One row of the table of close reasons.
struct Row {
    /// The WebSocket close code. A TCP connection is closed without one.
    code: u16,
    /// The reason that the log and the metric `ended` name.
    disconnect_reason: DisconnectReason,
    /// The data of the 1002 that precedes the close.
    farewell: Option<&'static str>,
    text: Cow<'static, str>,
}

impl CloseReason {
    /// The table: code, recorded reason, farewell, text. It alone decides the
    /// close codes that PROTOCOL.md lists.
    fn row(&self) -> Row {
        use DisconnectReason::{
            Abuse, Banned, Disconnect, Drained, Idle, Kicked, Logout, Replaced, Slow, Unstored,
        };
        let (code, disconnect_reason, farewell, text) = match self {
            Self::Logout => (1000, Logout, Some("true"), "logout".into()),
            Self::BadFraming(text) => (1002, Abuse, None, text.clone()),
            Self::BinaryFrame => (1003, Abuse, None, "text frames only".into()),
            Self::Disconnected => (1006, Disconnect, None, "".into()),
            Self::NotUtf8 => (1007, Abuse, None, "not UTF-8".into()),
            Self::BodyTooLarge => (1009, Abuse, None, "body too large".into()),
            Self::MessageTooLarge => (1009, Abuse, None, "message too large".into()),
            Self::Draining { retry_after } => {
                (1012, Drained, Some("draining"), retry_ms("", *retry_after))
            }
            Self::EndedDuringLogin => (1012, Drained, None, retry_ms("", Duration::ZERO)),
            Self::PlaybackStopped => (1012, Drained, None, "the recording is put away".into()),
            Self::SlowReader => (3008, Slow, None, "slow reader".into()),
            Self::Idle => (3010, Idle, None, "idle".into()),
            Self::LoginNotStored => (3014, Unstored, None, "login not stored in time".into()),
            Self::Suspended { retry_after } => {
                (3014, Unstored, None, retry_ms("not stored for long; ", *retry_after))
            }
            Self::Kicked { reason } => {
                (3502, Kicked, Some("kicked"), with_reason("kicked", reason))
            }
            Self::Replaced => {
                (3503, Replaced, Some("replaced"), "replaced by a newer login".into())
            }
            Self::Banned { reason } => {
                (3504, Banned, Some("kicked"), with_reason("banned", reason))
            }
            Self::UnknownCode => (3505, Abuse, None, "unknown code".into()),
        };
        Row { code, disconnect_reason, farewell, text }
    }

    /// Returns the WebSocket close code.
    pub(crate) fn code(&self) -> u16 {
        self.row().code
    }

    /// Returns the text of the close frame, cut at a character boundary to the
    /// bytes that a close frame may carry.
    pub(crate) fn text(&self) -> Cow<'static, str> {
        match self.row().text {
            text if text.len() <= TEXT_BYTES_MAX => text,
            text => text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned().into(),
        }
    }

    /// Returns the reason that the log and the metric `ended` name.
    pub(crate) fn disconnect_reason(&self) -> DisconnectReason {
        self.row().disconnect_reason
    }

    /// Returns the data of the 1002 that precedes the close, if one does.
    pub(crate) fn farewell(&self) -> Option<&'static str> {
        self.row().farewell
    }

    /// Returns whether PROTOCOL.md asks the client to connect again.
    pub(crate) fn may_reconnect(&self) -> bool {
        matches!(self.code(), 1006 | 1012 | 3000..=3499)
    }
}

/// Returns the text that tells a client when to come back.
fn retry_ms(prefix: &'static str, retry_after: Duration) -> Cow<'static, str> {
    format!("{prefix}retry_ms={}", retry_after.as_millis()).into()
}

fn with_reason(prefix: &'static str, reason: &str) -> Cow<'static, str> {
    match reason {
        "" => prefix.into(),
        reason => format!("{prefix}: {reason}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_close_reason_has_the_code_and_text_of_the_protocol() {
        let retry_after = Duration::from_millis(250);
        let reason = || "spam".to_owned();
        for (close, code, text, farewell, may_reconnect) in [
            (CloseReason::Logout, 1000, "logout", Some("true"), false),
            (CloseReason::BadFraming("bad framing".into()), 1002, "bad framing", None, false),
            (CloseReason::BinaryFrame, 1003, "text frames only", None, false),
            (CloseReason::NotUtf8, 1007, "not UTF-8", None, false),
            (CloseReason::BodyTooLarge, 1009, "body too large", None, false),
            (CloseReason::MessageTooLarge, 1009, "message too large", None, false),
            (CloseReason::Draining { retry_after }, 1012, "retry_ms=250", Some("draining"), true),
            (CloseReason::EndedDuringLogin, 1012, "retry_ms=0", None, true),
            (CloseReason::SlowReader, 3008, "slow reader", None, true),
            (CloseReason::Idle, 3010, "idle", None, true),
            (CloseReason::LoginNotStored, 3014, "login not stored in time", None, true),
            (
                CloseReason::Suspended { retry_after },
                3014,
                "not stored for long; retry_ms=250",
                None,
                true,
            ),
            (CloseReason::Kicked { reason: String::new() }, 3502, "kicked", Some("kicked"), false),
            (CloseReason::Kicked { reason: reason() }, 3502, "kicked: spam", Some("kicked"), false),
            (CloseReason::Replaced, 3503, "replaced by a newer login", Some("replaced"), false),
            (CloseReason::Banned { reason: reason() }, 3504, "banned: spam", Some("kicked"), false),
            (CloseReason::UnknownCode, 3505, "unknown code", None, false),
        ] {
            assert_eq!((close.code(), &*close.text()), (code, text));
            assert_eq!(close.farewell(), farewell, "{close:?}");
            assert_eq!(close.may_reconnect(), may_reconnect, "{close:?}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character_boundary() {
        // "kicked: " is 8 bytes and each character 3: 115 bytes are left, 38 characters fit.
        let close = CloseReason::Kicked { reason: "鱼".repeat(100) };
        assert_eq!(*close.text(), format!("kicked: {}", "鱼".repeat(38)));
        let close = CloseReason::Banned { reason: "x".repeat(115) };
        assert_eq!(close.text().len(), TEXT_BYTES_MAX, "a text that fits exactly is whole");
    }
}
