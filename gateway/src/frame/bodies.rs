//! The bodies of frames from clients.

use std::borrow::Cow;

use qiyu_schema::{ClientMsgId, MsgId};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::parse::object;

/// The body of a TCP client's login.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LoginBody {
    #[serde(deserialize_with = "number_or_digits")]
    pub(crate) app_id: u64,
    #[serde(deserialize_with = "number_or_digits")]
    pub(crate) user_id: u64,
    pub(crate) token: String,
    #[serde(default, deserialize_with = "optional_number_or_digits")]
    pub(crate) room_id: Option<u64>,
    #[serde(default, deserialize_with = "optional_number_or_digits")]
    pub(crate) last_msg_id: Option<u64>,
}

/// The body of a business frame. Its fields about the sender are checked for
/// their form and then ignored: the connection's identity is the sender.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BusinessBody {
    #[serde(default)]
    pub(crate) biz_code: Option<i32>,
    #[serde(default)]
    pub(crate) data: Option<String>,
    #[serde(default)]
    pub(crate) client_msg_id: Option<ClientMsgId>,
    #[serde(default, rename = "userId", deserialize_with = "optional_number_or_digits")]
    _user_id: Option<u64>,
    #[serde(default, rename = "appId", deserialize_with = "optional_number_or_digits")]
    _app_id: Option<u64>,
    #[serde(default, rename = "roomId", deserialize_with = "optional_number_or_digits")]
    _room_id: Option<u64>,
    #[serde(default, rename = "lastMsgId", deserialize_with = "optional_number_or_digits")]
    _last_msg_id: Option<u64>,
    #[serde(default, rename = "msgId")]
    _msg_id: Option<String>,
    #[serde(default, rename = "token")]
    _token: Option<String>,
}

/// The body of an acknowledgement. Unreadable parts of it acknowledge nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AckBody {
    #[serde(default)]
    msg_id: Option<String>,
    #[serde(default)]
    msg_ids: Option<Vec<String>>,
}

impl AckBody {
    /// Returns the acknowledged messages.
    pub(crate) fn read(text: &str) -> Vec<MsgId> {
        let body: Self = object(text).unwrap_or_default();
        let ids = body.msg_id.into_iter().chain(body.msg_ids.into_iter().flatten());
        ids.filter_map(|id| id.parse().ok()).collect()
    }
}

/// Deserializes a whole number, or a string of its digits, never through a float.
fn number_or_digits<'de, D: Deserializer<'de>>(de: D) -> Result<u64, D::Error> {
    optional_number_or_digits(de)?.ok_or_else(|| D::Error::custom("a number is missing"))
}

/// Deserializes like [`number_or_digits`]; null counts as absent.
pub(crate) fn optional_number_or_digits<'de, D: Deserializer<'de>>(
    de: D,
) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either<'a> {
        Number(u64),
        #[serde(borrow)]
        Digits(Cow<'a, str>),
    }
    match Option::<Either<'_>>::deserialize(de)? {
        None => Ok(None),
        Some(Either::Number(number)) => Ok(Some(number)),
        Some(Either::Digits(digits)) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().map(Some).map_err(|_| D::Error::custom("not a 64-bit number"))
        }
        Some(Either::Digits(_)) => Err(D::Error::custom("not a string of digits")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_exact_and_may_be_a_string_of_digits() {
        let body = r#"{"appId":"10001","userId":285608972927369217,"token":"t","x":1}"#;
        let login: LoginBody = serde_json::from_str(body).unwrap();
        assert_eq!((login.app_id, login.user_id), (10_001, 285_608_972_927_369_217));
        for bad in ["1.5", "-1", "1e9", r#""1a""#, "[]", "null"] {
            let body = format!(r#"{{"appId":10001,"userId":{bad},"token":"t"}}"#);
            assert!(serde_json::from_str::<LoginBody>(&body).is_err(), "{bad}");
        }
    }

    #[test]
    fn unreadable_parts_of_an_acknowledgement_are_ignored() {
        let (seven, nine) = ("7".parse().unwrap(), "9".parse().unwrap());
        assert_eq!(AckBody::read(r#"{"msgId":"7","msgIds":["9","x",""]}"#), [seven, nine]);
        for nothing in ["", "x", "{}", r#"{"msgId":7}"#, r#"{"msgId":"-7"}"#] {
            assert_eq!(AckBody::read(nothing), [], "{nothing}");
        }
    }
}
