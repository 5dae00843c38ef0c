//! What a connection's person waits for. Everything has a deadline.

use bytes::Bytes;
use serde_json::{Value, json};

use super::person::Room;
use super::socket::{Ending, Frame, Heard, Receipt, Socket, fresh_id};

impl Socket {
    /// The next chat message, whatever it says.
    pub(crate) async fn hears_something(&mut self) -> Heard {
        self.waits("to hear something", |inbox| inbox.chats.pop_front()).await
    }

    /// The next chat message, which must say `text`.
    pub(crate) async fn hears(&mut self, text: &str) -> Heard {
        let what = format!("to hear {text:?}");
        let heard = self.waits(&what, |inbox| inbox.chats.pop_front()).await;
        assert_eq!(heard.text(), text, "{} heard something else: {heard:?}", self.person.name);
        heard
    }

    /// Everything up to and with the message that says `last`.
    pub(crate) async fn hears_until(&mut self, last: &str) -> Vec<Heard> {
        let mut all = Vec::new();
        loop {
            all.push(self.hears_something().await);
            if all.last().is_some_and(|heard| heard.text() == last) {
                return all;
            }
        }
    }

    /// Nothing else was on its way: what `other` says into the room now is the next thing heard.
    pub(crate) async fn hears_nothing_else(&mut self, other: &Self, room: &Room) {
        let marker = fresh_id();
        other.says(room, &marker);
        self.hears(&marker).await;
    }

    /// The next notice of the kind `biz_code`; other kinds may come before it.
    pub(crate) async fn is_told(&mut self, biz_code: i64) -> Value {
        let what = format!("to be told {biz_code}");
        let of_that_kind = |frame: &Frame| frame.body["bizCode"] == biz_code;
        let notice = self.waits(&what, |inbox| {
            let at = inbox.notices.iter().position(of_that_kind)?;
            inbox.notices.remove(at)
        });
        notice.await.body
    }

    /// The next receipt.
    pub(crate) async fn receipt(&mut self) -> Receipt {
        self.waits("for a receipt", |inbox| inbox.receipts.pop_front()).await
    }

    /// The next receipt is a refusal for this reason.
    pub(crate) async fn is_refused(&mut self, reason: i64) {
        let receipt = self.receipt().await;
        assert_eq!(receipt.outcome, Err(reason), "{}", self.person.name);
    }

    /// The next reply to a 1001, 1002 or 1004 is this one; returns its body.
    pub(crate) async fn is_answered(&mut self, code: i64, data: &str) -> Value {
        let what = format!("for a {code} {data:?}");
        let reply = self.waits(&what, |inbox| inbox.replies.pop_front()).await;
        let (name, body) = (&self.person.name, reply.body);
        assert_eq!((reply.code, &body["data"]), (code, &json!(data)), "{name}: {body}");
        body
    }

    /// The next pong's payload.
    pub(crate) async fn pong(&mut self) -> Bytes {
        self.waits("for a pong", |inbox| inbox.pongs.pop_front()).await
    }

    /// The server ends the connection.
    pub(crate) async fn is_closed(&mut self) -> Ending {
        self.waits("to be closed", |inbox| inbox.ending.clone()).await
    }

    /// The server ends the connection with this close code.
    pub(crate) async fn is_closed_with(&mut self, code: u16) -> Ending {
        let ending = self.is_closed().await;
        assert_eq!(ending.code, Some(code), "{}: {ending:?}", self.person.name);
        ending
    }

    /// The server ends the connection and not one frame came before.
    pub(crate) async fn is_closed_without_a_word(&mut self) -> Ending {
        let ending = self.is_closed().await;
        let inbox = &self.inbox;
        let silent = inbox.replies.is_empty() && inbox.receipts.is_empty();
        assert!(silent && inbox.chats.is_empty(), "{}: {inbox:?}", self.person.name);
        ending
    }
}
