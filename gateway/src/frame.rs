//! The client's wire: codes, frames, bodies. Nothing behind the gateway knows these.

use std::{borrow::Cow, sync::OnceLock};

use bytes::{BufMut, BytesMut};
use qiyu_schema::{AppId, ClientMsgId, MsgId, UserId};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::value::RawValue;

/// The first two bytes of every TCP frame.
pub(crate) const MAGIC: i16 = 18673;
/// Bytes of magic, code and length before a TCP frame's body.
pub(crate) const TCP_HEADER_BYTES: usize = 10;

/// What a frame is about.
pub(crate) mod code {
    pub(crate) const LOGIN: i32 = 1001;
    pub(crate) const LOGOUT: i32 = 1002;
    pub(crate) const BUSINESS: i32 = 1003;
    pub(crate) const HEARTBEAT: i32 = 1004;
    pub(crate) const ACK: i32 = 1005;
    pub(crate) const RECEIPT: i32 = 1006;
}

/// What a business frame is about.
pub(crate) mod biz {
    pub(crate) const CHAT: i32 = 5555;
    pub(crate) const ROOM_CLOSED: i32 = 5600;
    /// A notice; fan-out sends it where a room lives.
    pub(crate) const VIEWERS: i32 = 5601;
    pub(crate) const LIKES: i32 = 5602;
    pub(crate) const MUTED: i32 = 5610;
    /// Left to an integrator's own consumer of the log.
    pub(crate) const INTEGRATORS: std::ops::RangeInclusive<i32> = 7000..=7999;
}

/// Why a business frame was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    RoomNotOpen,
    NotInRoom,
    NotRouted,
    Unreadable,
    TooFast,
    ContentRefused,
    Muted,
    NotStored,
}

impl Reason {
    pub(crate) const ALL: [Self; 8] = [
        Self::RoomNotOpen,
        Self::NotInRoom,
        Self::NotRouted,
        Self::Unreadable,
        Self::TooFast,
        Self::ContentRefused,
        Self::Muted,
        Self::NotStored,
    ];

    pub(crate) fn code(self) -> i32 {
        match self {
            Self::RoomNotOpen => 4004,
            Self::NotInRoom => 4005,
            Self::NotRouted => 4006,
            Self::Unreadable => 4007,
            Self::TooFast => 4008,
            Self::ContentRefused => 4009,
            Self::Muted => 4010,
            Self::NotStored => 5000,
        }
    }
}

/// A frame from a client.
#[derive(Debug, PartialEq)]
pub(crate) struct InFrame {
    pub(crate) code: i64,
    pub(crate) body: Body,
}

/// A frame's body, not looked into yet.
#[derive(Debug, PartialEq)]
pub(crate) enum Body {
    /// JSON text, hopefully; empty if there was none.
    Text(String),
    /// Neither text nor an object.
    Unreadable,
}

/// A WebSocket text that is not a frame.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum BadFrame {
    #[error("not a JSON object with a whole-number code")]
    NotAFrame,
    #[error("wrong magic")]
    Magic,
    #[error("body too large")]
    TooLarge,
}

/// Reads a JSON object. Serde alone would take an array for a struct, too.
pub(crate) fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, serde_json::Error> {
    if text.trim_ascii_start().starts_with('{') {
        serde_json::from_str(text)
    } else {
        Err(serde_json::Error::custom("not a JSON object"))
    }
}

/// Reads one WebSocket text.
pub(crate) fn parse_ws(text: &str, body_bytes_max: usize) -> Result<InFrame, BadFrame> {
    #[derive(Deserialize)]
    struct Raw<'a> {
        magic: Option<serde_json::Number>,
        code: serde_json::Number,
        #[serde(borrow)]
        body: Option<&'a RawValue>,
    }
    let raw: Raw<'_> = object(text).map_err(|_| BadFrame::NotAFrame)?;
    if raw.magic.is_some_and(|magic| magic.as_i64() != Some(i64::from(MAGIC))) {
        return Err(BadFrame::Magic);
    }
    let code = match raw.code.as_i64() {
        Some(code) => code,
        None if raw.code.is_u64() => i64::MAX, // whole, and certainly unknown
        None => return Err(BadFrame::NotAFrame),
    };
    let body = match raw.body.map(RawValue::get) {
        None => Body::Text(String::new()),
        Some(text) if text.starts_with('"') => {
            Body::Text(serde_json::from_str(text).map_err(|_| BadFrame::NotAFrame)?)
        }
        Some(object) if object.starts_with('{') => Body::Text(object.to_owned()),
        Some(_) => Body::Unreadable,
    };
    match body {
        Body::Text(text) if body_bytes_max < text.len() => Err(BadFrame::TooLarge),
        body => Ok(InFrame { code, body }),
    }
}

/// Takes one frame from the front of what TCP has brought, if it is whole.
pub(crate) fn parse_tcp(
    input: &mut BytesMut,
    body_bytes_max: usize,
) -> Result<Option<InFrame>, BadFrame> {
    if 2 <= input.len() && i16::from_be_bytes([input[0], input[1]]) != MAGIC {
        return Err(BadFrame::Magic); // at once: waiting for more cannot help
    }
    let Some(header) = input.first_chunk::<TCP_HEADER_BYTES>() else { return Ok(None) };
    let code = i32::from_be_bytes([header[2], header[3], header[4], header[5]]);
    let len = i32::from_be_bytes([header[6], header[7], header[8], header[9]]);
    // Checked before anything is reserved: memory never grows by what a client claims.
    let len = usize::try_from(len).map_err(|_| BadFrame::TooLarge)?;
    if body_bytes_max < len {
        return Err(BadFrame::TooLarge);
    }
    if input.len() < TCP_HEADER_BYTES + len {
        return Ok(None);
    }
    let frame = input.split_to(TCP_HEADER_BYTES + len);
    let body = match std::str::from_utf8(&frame[TCP_HEADER_BYTES..]) {
        Ok(text) => Body::Text(text.to_owned()),
        Err(_) => Body::Unreadable,
    };
    Ok(Some(InFrame { code: i64::from(code), body }))
}

/// What a TCP client says of itself when it logs in.
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

/// A business frame's body. Whatever it says of its sender is checked for its
/// form and then ignored: the sender is who the connection proved to be.
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

/// An acknowledgement's body; what cannot be read of it is no acknowledgement.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AckBody {
    #[serde(default)]
    msg_id: Option<String>,
    #[serde(default)]
    msg_ids: Option<Vec<String>>,
}

impl AckBody {
    /// The messages acknowledged.
    pub(crate) fn read(text: &str) -> Vec<MsgId> {
        let body: Self = object(text).unwrap_or_default();
        let ids = body.msg_id.into_iter().chain(body.msg_ids.into_iter().flatten());
        ids.filter_map(|id| id.parse().ok()).collect()
    }
}

/// A whole number, or a string of its digits; never through a float.
pub(crate) fn number_or_digits<'de, D: Deserializer<'de>>(de: D) -> Result<u64, D::Error> {
    optional_number_or_digits(de)?.ok_or_else(|| D::Error::custom("a number is missing"))
}

/// As [`number_or_digits`]; null counts as absent.
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

/// The body of a frame to a client that is for this client alone.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reply {
    app_id: u64,
    biz_code: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_msg_id: Option<ClientMsgId>,
    data: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    msg_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered: Option<bool>,
    user_id: u64,
}

impl Reply {
    /// A reply that says `data` and nothing else. Plain numbers: whoever is refused
    /// hears the ids they gave, whatever those are.
    pub(crate) fn plain(app_id: u64, user_id: u64, data: &'static str) -> Self {
        let (client_msg_id, msg_id, recovered) = (None, None, None);
        Self { app_id, biz_code: 0, client_msg_id, data, msg_id, recovered, user_id }
    }

    /// [`Reply::plain`] to somebody who is logged in.
    pub(crate) fn to(app: AppId, user: UserId, data: &'static str) -> Self {
        Self::plain(u64::from(app.get()), user.get(), data)
    }

    /// A login that worked. `position`: where it entered its room, if it entered one.
    pub(crate) fn welcome(
        app: AppId,
        user: UserId,
        position: Option<MsgId>,
        recovered: Option<bool>,
    ) -> Self {
        Self {
            msg_id: position.map(|position| position.to_string()),
            recovered,
            ..Self::to(app, user, "true")
        }
    }

    /// What became of a business frame.
    pub(crate) fn receipt(
        app: AppId,
        user: UserId,
        client_msg_id: Option<ClientMsgId>,
        outcome: Result<MsgId, Reason>,
    ) -> Self {
        let (data, biz_code, msg_id) = match outcome {
            Ok(msg_id) => ("true", 0, Some(msg_id.to_string())),
            Err(reason) => ("false", reason.code(), None),
        };
        Self { client_msg_id, biz_code, msg_id, ..Self::to(app, user, data) }
    }
}

/// How a connection's frames are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Tcp,
    Ws,
}

impl Wire {
    /// Appends a frame for this client alone.
    pub(crate) fn write_reply(self, out: &mut BytesMut, code: i32, reply: &Reply) {
        let body = serde_json::to_string(reply).expect("plain data encodes");
        match self {
            Self::Tcp => write_tcp(out, code, &body, "", ""),
            Self::Ws => write_ws(out, code, body.len(), &escape(&body), "", ""),
        }
    }

    /// Appends a message, with the recipient's id spliced in.
    pub(crate) fn write_message(self, out: &mut BytesMut, message: &Message, user: &str) {
        match self {
            Self::Tcp => write_tcp(out, code::BUSINESS, &message.body, user, "}"),
            Self::Ws => {
                let len = message.body.len() + user.len() + 1;
                write_ws(out, code::BUSINESS, len, message.escaped(), user, "}");
            }
        }
    }
}

/// A 1003 for many recipients, encoded once: they share all of it but their own id.
#[derive(Debug)]
pub(crate) struct Message {
    /// The body up to the value of its last field, `userId`.
    body: String,
    /// The same as part of a JSON string; only made when a WebSocket hears it.
    escaped: OnceLock<String>,
}

impl Message {
    /// `msg_id`: none in a notice, which nobody acknowledges.
    pub(crate) fn new(app: AppId, biz_code: i32, data: &str, msg_id: Option<MsgId>) -> Self {
        let data = serde_json::to_string(data).expect("text encodes");
        let msg_id = msg_id.map(|id| format!(r#""msgId":"{id}","#)).unwrap_or_default();
        let body =
            format!(r#"{{"appId":{app},"bizCode":{biz_code},"data":{data},{msg_id}"userId":"#);
        Self { body, escaped: OnceLock::new() }
    }

    /// The text of a WebSocket message for one recipient.
    pub(crate) fn text(&self, user: &str) -> String {
        ws_text(code::BUSINESS, &format!("{}{user}}}", self.body))
    }

    /// About how many bytes a queue holds with it.
    pub(crate) fn bytes(&self) -> usize {
        self.body.len() + 64
    }

    fn escaped(&self) -> &str {
        self.escaped.get_or_init(|| escape(&self.body))
    }
}

/// The text of a WebSocket message that is for this client alone.
pub(crate) fn reply_text(code: i32, reply: &Reply) -> String {
    ws_text(code, &serde_json::to_string(reply).expect("plain data encodes"))
}

fn ws_text(code: i32, body: &str) -> String {
    let (len, escaped) = (body.len(), escape(body));
    format!(r#"{{"magic":{MAGIC},"code":{code},"len":{len},"body":"{escaped}"}}"#)
}

/// `text` as it stands between the quotes of a JSON string.
fn escape(text: &str) -> String {
    let quoted = serde_json::to_string(text).expect("text encodes");
    quoted[1..quoted.len() - 1].to_owned()
}

fn write_tcp(out: &mut BytesMut, code: i32, body: &str, user: &str, end: &str) {
    let len = body.len() + user.len() + end.len();
    out.reserve(TCP_HEADER_BYTES + len);
    out.put_i16(MAGIC);
    out.put_i32(code);
    out.put_i32(i32::try_from(len).unwrap_or(i32::MAX)); // bodies are below 2 MiB
    out.put_slice(body.as_bytes());
    out.put_slice(user.as_bytes());
    out.put_slice(end.as_bytes());
}

/// One unmasked text frame holding one JSON object. `body_bytes`: of the body before escaping.
fn write_ws(
    out: &mut BytesMut,
    code: i32,
    body_bytes: usize,
    escaped: &str,
    user: &str,
    end: &str,
) {
    let (mut code_digits, mut len_digits) = (itoa::Buffer::new(), itoa::Buffer::new());
    let parts = [
        r#"{"magic":18673,"code":"#,
        code_digits.format(code),
        r#","len":"#,
        len_digits.format(body_bytes),
        r#","body":""#,
        escaped,
        user,
        end,
        r#""}"#,
    ];
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.reserve(len + 10);
    put_ws_header(out, 0x81, len);
    for part in parts {
        out.put_slice(part.as_bytes());
    }
}

/// Appends a close frame.
pub(crate) fn write_ws_close(out: &mut BytesMut, code: u16, reason: &str) {
    put_ws_header(out, 0x88, 2 + reason.len());
    out.put_u16(code);
    out.put_slice(reason.as_bytes());
}

fn put_ws_header(out: &mut BytesMut, first: u8, len: usize) {
    out.put_u8(first);
    match len {
        0..=125 => out.put_u8(len as u8),
        126..=0xffff => {
            out.put_u8(126);
            out.put_u16(len as u16);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(len as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> AppId {
        "10001".parse().unwrap()
    }

    #[test]
    fn the_golden_heartbeat() {
        let body = r#"{"appId":10001,"bizCode":0,"userId":11113}"#;
        let mut out = BytesMut::new();
        write_tcp(&mut out, code::HEARTBEAT, body, "", "");
        assert_eq!(&out[..10], [0x48, 0xf1, 0, 0, 3, 0xec, 0, 0, 0, 0x2a]);
        assert_eq!(&out[10..], body.as_bytes());
    }

    #[test]
    fn tcp_frames_come_whole_whatever_the_pieces() {
        let mut all = BytesMut::new();
        write_tcp(&mut all, 1003, "{\"data\":\"旗鱼\"}", "", "");
        write_tcp(&mut all, 1004, "", "", "");
        let mut input = BytesMut::new();
        let mut frames = Vec::new();
        for byte in all {
            input.put_u8(byte);
            frames.extend(parse_tcp(&mut input, 100).unwrap());
        }
        assert_eq!(frames[0].body, Body::Text("{\"data\":\"旗鱼\"}".into()));
        assert_eq!((frames.len(), frames[1].code), (2, 1004));
    }

    #[test]
    fn tcp_lengths_are_checked_before_memory_is_taken() {
        let frame = |len: i32| {
            let mut bytes = BytesMut::new();
            bytes.put_i16(MAGIC);
            bytes.put_i32(1003);
            bytes.put_i32(len);
            bytes
        };
        for len in [-1, i32::MIN, 101, i32::MAX] {
            assert_eq!(parse_tcp(&mut frame(len), 100), Err(BadFrame::TooLarge), "{len}");
        }
        assert_eq!(parse_tcp(&mut frame(100), 100), Ok(None));
        assert_eq!(parse_tcp(&mut BytesMut::from(&[0x48, 0xf2][..]), 100), Err(BadFrame::Magic));
    }

    #[test]
    fn ws_texts() {
        let ok = |text: &str| parse_ws(text, 20).unwrap();
        let text = |code, body: &str| InFrame { code, body: Body::Text(body.into()) };
        assert_eq!(ok(r#"{"magic":18673,"code":1004,"len":9,"body":"{}"}"#), text(1004, "{}"));
        assert_eq!(ok(r#"{"code":1004}"#), text(1004, ""));
        assert_eq!(ok(r#"{"code":1004,"body":null,"x":[1]}"#), text(1004, ""));
        assert_eq!(ok(r#"{"code":1003,"body":{"data":"\n"}}"#), text(1003, r#"{"data":"\n"}"#));
        assert_eq!(ok(r#"{"code":1003,"body":[1]}"#).body, Body::Unreadable);
        assert_eq!(ok(r#"{"code":18446744073709551615}"#).code, i64::MAX);
        for bad in [
            "",
            "x",
            "[]",
            "[18673,1004]",
            "1",
            "{}",
            r#"{"code":"1004"}"#,
            r#"{"code":1004.5}"#,
            "null",
        ] {
            assert_eq!(parse_ws(bad, 20), Err(BadFrame::NotAFrame), "{bad}");
        }
        let (magic, large) = (r#"{"magic":1,"code":1004}"#, "x".repeat(21));
        assert_eq!(parse_ws(magic, 20), Err(BadFrame::Magic));
        let large = format!(r#"{{"code":1004,"body":"{large}"}}"#);
        assert_eq!(parse_ws(&large, 20), Err(BadFrame::TooLarge));
        assert!(parse_ws(&"[".repeat(100_000), 20).is_err(), "no depth ends the stack");
    }

    #[test]
    fn a_shared_message_reads_like_one_of_ones_own() {
        let message = Message::new(app(), 5555, r#"{"content":"\"旗鱼\"\n"}"#, Some(MsgId::at(9)));
        let mut tcp = BytesMut::new();
        Wire::Tcp.write_message(&mut tcp, &message, "285608972927369217");
        let body: serde_json::Value = serde_json::from_slice(&tcp[10..]).unwrap();
        assert_eq!(body["userId"], 285_608_972_927_369_217_u64);
        assert_eq!(body["msgId"], MsgId::at(9).to_string());
        let mut ws = BytesMut::new();
        Wire::Ws.write_message(&mut ws, &message, "285608972927369217");
        let start = if ws[1] == 126 { 4 } else { 2 };
        let frame: serde_json::Value = serde_json::from_slice(&ws[start..]).unwrap();
        let text = frame["body"].as_str().unwrap();
        assert_eq!(frame["len"], text.len());
        assert_eq!(serde_json::from_str::<serde_json::Value>(text).unwrap(), body);
    }

    #[test]
    fn ids_in_bodies_are_exact_and_digits_are_numbers_too() {
        let body = r#"{"appId":"10001","userId":285608972927369217,"token":"t","x":1}"#;
        let login: LoginBody = serde_json::from_str(body).unwrap();
        assert_eq!((login.app_id, login.user_id), (10_001, 285_608_972_927_369_217));
        for bad in ["1.5", "-1", "1e9", r#""1a""#, "[]", "null"] {
            let body = format!(r#"{{"appId":10001,"userId":{bad},"token":"t"}}"#);
            assert!(serde_json::from_str::<LoginBody>(&body).is_err(), "{bad}");
        }
    }

    #[test]
    fn acks_are_read_as_far_as_they_can_be() {
        let (seven, nine) = ("7".parse().unwrap(), "9".parse().unwrap());
        assert_eq!(AckBody::read(r#"{"msgId":"7","msgIds":["9","x",""]}"#), [seven, nine]);
        for nothing in ["", "x", "{}", r#"{"msgId":7}"#, r#"{"msgId":"-7"}"#] {
            assert_eq!(AckBody::read(nothing), [], "{nothing}");
        }
    }
}
