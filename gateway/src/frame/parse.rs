//! Reading frames: WebSocket texts and the TCP stream.

use bytes::BytesMut;
use serde::{Deserialize, de::Error as _};
use serde_json::value::RawValue;

/// The first two bytes of every TCP frame.
pub(super) const MAGIC: i16 = 18673;
/// Bytes of magic, code and length before a TCP frame's body.
pub(super) const TCP_HEADER_BYTES: usize = 10;

/// A frame from a client.
#[derive(Debug, PartialEq)]
pub(crate) struct ClientFrame {
    pub(crate) code: i64,
    pub(crate) body: Body,
}

/// A frame's body, not parsed yet.
#[derive(Debug, PartialEq)]
pub(crate) enum Body {
    /// Text that should be JSON. Empty if the frame had no body.
    Text(String),
    /// Neither text nor a JSON object.
    Unreadable,
}

/// An error in the framing.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("not a JSON object with a whole-number code")]
    NotAFrame,
    #[error("wrong magic")]
    Magic,
    #[error("body too large")]
    TooLarge,
}

/// Parses a JSON object. Serde alone would accept an array for a struct, too.
pub(crate) fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, serde_json::Error> {
    if text.trim_ascii_start().starts_with('{') {
        serde_json::from_str(text)
    } else {
        Err(serde_json::Error::custom("not a JSON object"))
    }
}

/// Parses one WebSocket text.
pub(crate) fn parse_ws(text: &str, body_bytes_max: usize) -> Result<ClientFrame, FrameError> {
    #[derive(Deserialize)]
    struct Raw<'a> {
        magic: Option<serde_json::Number>,
        code: serde_json::Number,
        #[serde(borrow)]
        body: Option<&'a RawValue>,
    }
    let raw: Raw<'_> = object(text).map_err(|_| FrameError::NotAFrame)?;
    if raw.magic.is_some_and(|magic| magic.as_i64() != Some(i64::from(MAGIC))) {
        return Err(FrameError::Magic);
    }
    let code = match raw.code.as_i64() {
        Some(code) => code,
        None if raw.code.is_u64() => i64::MAX, // a whole number, and an unknown code
        None => return Err(FrameError::NotAFrame),
    };
    let body = match raw.body.map(RawValue::get) {
        None => Body::Text(String::new()),
        Some(text) if text.starts_with('"') => {
            Body::Text(serde_json::from_str(text).map_err(|_| FrameError::NotAFrame)?)
        }
        Some(object) if object.starts_with('{') => Body::Text(object.to_owned()),
        Some(_) => Body::Unreadable,
    };
    match body {
        Body::Text(text) if text.len() > body_bytes_max => Err(FrameError::TooLarge),
        body => Ok(ClientFrame { code, body }),
    }
}

/// Splits one frame off the front of the TCP input, if it is complete.
pub(crate) fn parse_tcp(
    input: &mut BytesMut,
    body_bytes_max: usize,
) -> Result<Option<ClientFrame>, FrameError> {
    if input.len() >= 2 && i16::from_be_bytes([input[0], input[1]]) != MAGIC {
        return Err(FrameError::Magic); // at once: more input cannot repair it
    }
    let Some(header) = input.first_chunk::<TCP_HEADER_BYTES>() else { return Ok(None) };
    let code = i32::from_be_bytes([header[2], header[3], header[4], header[5]]);
    let len = i32::from_be_bytes([header[6], header[7], header[8], header[9]]);
    // Checked before anything is reserved: a claimed length takes no memory.
    let len = usize::try_from(len).map_err(|_| FrameError::TooLarge)?;
    if len > body_bytes_max {
        return Err(FrameError::TooLarge);
    }
    if input.len() < TCP_HEADER_BYTES + len {
        return Ok(None);
    }
    let frame = input.split_to(TCP_HEADER_BYTES + len);
    let body = match std::str::from_utf8(&frame[TCP_HEADER_BYTES..]) {
        Ok(text) => Body::Text(text.to_owned()),
        Err(_) => Body::Unreadable,
    };
    Ok(Some(ClientFrame { code: i64::from(code), body }))
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    fn put_frame(input: &mut BytesMut, code: i32, body: &str) {
        input.put_i16(MAGIC);
        input.put_i32(code);
        input.put_i32(i32::try_from(body.len()).unwrap());
        input.put_slice(body.as_bytes());
    }

    #[test]
    fn a_tcp_frame_is_complete_however_it_was_split() {
        let mut all = BytesMut::new();
        put_frame(&mut all, 1003, "{\"data\":\"旗鱼\"}");
        put_frame(&mut all, 1004, "");
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
    fn a_tcp_length_is_checked_before_memory_is_reserved() {
        let frame = |len: i32| {
            let mut bytes = BytesMut::new();
            bytes.put_i16(MAGIC);
            bytes.put_i32(1003);
            bytes.put_i32(len);
            bytes
        };
        for len in [-1, i32::MIN, 101, i32::MAX] {
            assert_eq!(parse_tcp(&mut frame(len), 100), Err(FrameError::TooLarge), "{len}");
        }
        assert_eq!(parse_tcp(&mut frame(100), 100), Ok(None));
        assert_eq!(parse_tcp(&mut BytesMut::from(&[0x48, 0xf2][..]), 100), Err(FrameError::Magic));
    }

    #[test]
    fn a_websocket_text_is_a_frame_or_an_error() {
        let ok = |text: &str| parse_ws(text, 20).unwrap();
        let text = |code, body: &str| ClientFrame { code, body: Body::Text(body.into()) };
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
            assert_eq!(parse_ws(bad, 20), Err(FrameError::NotAFrame), "{bad}");
        }
        let (magic, large) = (r#"{"magic":1,"code":1004}"#, "x".repeat(21));
        assert_eq!(parse_ws(magic, 20), Err(FrameError::Magic));
        let large = format!(r#"{{"code":1004,"body":"{large}"}}"#);
        assert_eq!(parse_ws(&large, 20), Err(FrameError::TooLarge));
        assert!(parse_ws(&"[".repeat(100_000), 20).is_err(), "no depth overflows the stack");
    }
}
