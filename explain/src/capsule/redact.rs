//! Removes typed text from events; ids, times and kinds remain.

use qiyu_schema::event::{Event, Record};
use serde_json::{Map, Value};

/// Numeric fields of a message's data that are kept.
const KEPT: [&str; 6] = ["userId", "senderId", "objectId", "roomId", "type", "createTime"];

/// Removes all typed text from `record`: messages, names, pictures, reasons. Ids, times and
/// clientMsgIds stay: without them nothing can be traced.
pub(crate) fn redact(record: &mut Record) {
    match &mut record.event {
        Event::RoomOpened { name, cover, .. } => {
            name.clear();
            cover.clear();
        }
        Event::RoomMessageSent { data, .. }
        | Event::DirectMessageSent { data, .. }
        | Event::BusinessSent { data, .. } => *data = redacted(data),
        Event::ContentRefused { content, reason, .. } => {
            *content = counted(content);
            reason.clear(); // it may quote the word
        }
        Event::SanctionImposed { reason, .. } => reason.clear(),
        Event::RoomClosed { .. }
        | Event::RoomLiked { .. }
        | Event::MembersChanged { .. }
        | Event::SessionsChanged { .. }
        | Event::Unacknowledged { .. }
        | Event::GatewayGone { .. }
        | Event::SanctionLifted { .. }
        | Event::Unknown => {}
    }
}

fn redacted(data: &str) -> String {
    let Ok(fields) = serde_json::from_str::<Map<String, Value>>(data) else {
        return "{}".to_owned();
    };
    let keep = |(name, value): (String, Value)| match (name.as_str(), value) {
        ("content", Value::String(text)) => Some((name, Value::String(counted(&text)))),
        (known, value @ Value::Number(_)) if KEPT.contains(&known) => Some((name, value)),
        _ => None,
    };
    Value::Object(fields.into_iter().filter_map(keep).collect()).to_string()
}

fn counted(text: &str) -> String {
    format!("[{} characters]", text.chars().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_typed_remains() {
        let data = r#"{"userId":285608972927369217,"roomId":7,"type":1,"content":"secret 词",
            "senderName":"secret","senderAvatar":"secret","createTime":5,"extra":{"x":"secret"}}"#;
        assert_eq!(
            redacted(data),
            r#"{"content":"[8 characters]","createTime":5,"roomId":7,"type":1,"userId":285608972927369217}"#
        );
        assert_eq!(redacted("secret"), "{}");
        assert_eq!(redacted(r#"{"roomId":"secret","content":["secret"]}"#), "{}");
    }
}
