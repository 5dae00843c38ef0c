//! Writing frames: replies to one client, and messages that many recipients share.

use std::sync::OnceLock;

use bytes::{BufMut, BytesMut};
use qiyu_schema::{AppId, MsgId};

use super::{
    codes::code,
    parse::{MAGIC, TCP_HEADER_BYTES},
    reply::Reply,
};

/// The transport of a connection, which decides how its frames are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Ws,
}

impl Transport {
    /// Appends a frame for one client alone.
    pub(crate) fn write_reply(self, out: &mut BytesMut, code: i32, reply: &Reply) {
        let body = serde_json::to_string(reply).expect("plain data encodes");
        match self {
            Self::Tcp => write_tcp(out, code, &body, "", ""),
            Self::Ws => write_ws(out, code, body.len(), &escape(&body), "", ""),
        }
    }

    /// Appends a message, with the recipient's id spliced in.
    pub(crate) fn write_message(self, out: &mut BytesMut, message: &EncodedMessage, user: &str) {
        match self {
            Self::Tcp => write_tcp(out, code::BUSINESS, &message.body, user, "}"),
            Self::Ws => {
                let len = message.body.len() + user.len() + 1;
                write_ws(out, code::BUSINESS, len, message.escaped(), user, "}");
            }
        }
    }
}

/// A business frame (1003) for many recipients, encoded once. They share all of
/// it but their own id.
#[derive(Debug)]
pub(crate) struct EncodedMessage {
    /// The body up to the value of its last field, `userId`.
    body: String,
    /// The body as part of a JSON string; made when a WebSocket first needs it.
    escaped: OnceLock<String>,
}

impl EncodedMessage {
    /// Encodes a message. A notice has no `msg_id`, and is not acknowledged.
    pub(crate) fn new(app: AppId, biz_code: i32, data: &str, msg_id: Option<MsgId>) -> Self {
        let data = serde_json::to_string(data).expect("text encodes");
        let msg_id = msg_id.map(|id| format!(r#""msgId":"{id}","#)).unwrap_or_default();
        let body =
            format!(r#"{{"appId":{app},"bizCode":{biz_code},"data":{data},{msg_id}"userId":"#);
        Self { body, escaped: OnceLock::new() }
    }

    /// Returns the text of a WebSocket message for one recipient.
    pub(crate) fn text(&self, user: &str) -> String {
        ws_text(code::BUSINESS, &format!("{}{user}}}", self.body))
    }

    /// Returns about how many bytes it adds to a connection's queue.
    pub(crate) fn bytes(&self) -> usize {
        self.body.len() + 64
    }

    fn escaped(&self) -> &str {
        self.escaped.get_or_init(|| escape(&self.body))
    }
}

/// Returns the text of a WebSocket message that is for one client alone.
pub(crate) fn reply_text(code: i32, reply: &Reply) -> String {
    ws_text(code, &serde_json::to_string(reply).expect("plain data encodes"))
}

fn ws_text(code: i32, body: &str) -> String {
    let (len, escaped) = (body.len(), escape(body));
    format!(r#"{{"magic":{MAGIC},"code":{code},"len":{len},"body":"{escaped}"}}"#)
}

/// Escapes `text` as it stands between the quotes of a JSON string.
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

/// Appends one unmasked text frame with one JSON object. `body_bytes` counts the
/// body before it was escaped.
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
    fn a_tcp_heartbeat_has_the_bytes_of_the_protocol() {
        let body = r#"{"appId":10001,"bizCode":0,"userId":11113}"#;
        let mut out = BytesMut::new();
        write_tcp(&mut out, code::HEARTBEAT, body, "", "");
        assert_eq!(&out[..10], [0x48, 0xf1, 0, 0, 3, 0xec, 0, 0, 0, 0x2a]);
        assert_eq!(&out[10..], body.as_bytes());
    }

    #[test]
    fn a_shared_message_is_complete_for_each_recipient() {
        let message =
            EncodedMessage::new(app(), 5555, r#"{"content":"\"旗鱼\"\n"}"#, Some(MsgId::at(9)));
        let mut tcp = BytesMut::new();
        Transport::Tcp.write_message(&mut tcp, &message, "285608972927369217");
        let body: serde_json::Value = serde_json::from_slice(&tcp[10..]).unwrap();
        assert_eq!(body["userId"], 285_608_972_927_369_217_u64);
        assert_eq!(body["msgId"], MsgId::at(9).to_string());
        let mut ws = BytesMut::new();
        Transport::Ws.write_message(&mut ws, &message, "285608972927369217");
        let start = if ws[1] == 126 { 4 } else { 2 };
        let frame: serde_json::Value = serde_json::from_slice(&ws[start..]).unwrap();
        let text = frame["body"].as_str().unwrap();
        assert_eq!(frame["len"], text.len());
        assert_eq!(serde_json::from_str::<serde_json::Value>(text).unwrap(), body);
    }
}
