//! What a connection's person does. Nothing here waits unless its name says what for.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::person::{APP, Person, Room};
use super::socket::{Line, Socket, fresh_id};

/// Chat in a living room.
const CHAT: i64 = 5555;

impl Socket {
    /// Sends one frame with any body.
    pub(crate) fn sends(&self, code: i64, body: impl ToString) {
        self.line.put(&[(code, body.to_string())]);
    }

    /// Sends several frames in one write.
    pub(crate) fn sends_together(&self, frames: &[(i64, String)]) {
        self.line.put(frames);
    }

    /// Sends bytes as they are, down a phone's line.
    pub(crate) fn sends_bytes(&self, bytes: impl Into<Vec<u8>>) {
        match &self.line {
            Line::Tcp(out) => out.send(bytes.into()).ok(),
            Line::Ws(_) => panic!("a browser cannot send raw bytes"),
        };
    }

    /// Sends a WebSocket message or frame of any kind.
    pub(crate) fn sends_message(&self, message: Message) {
        match &self.line {
            Line::Ws(out) => out.send(vec![message]).ok(),
            Line::Tcp(_) => panic!("a phone has no WebSocket"),
        };
    }

    /// The body of a chat message as this person's client writes it.
    pub(crate) fn chat(&self, data: &Value, client_msg_id: Option<&str>) -> Value {
        let mut body = json!({
            "appId": APP, "userId": self.person.id, "bizCode": CHAT, "data": data.to_string(),
        });
        if let Some(id) = client_msg_id {
            body["clientMsgId"] = json!(id);
        }
        body
    }

    /// Says something to the room, and does not ask for a receipt.
    pub(crate) fn says(&self, room: &Room, text: &str) {
        self.sends(1003, self.chat(&to_room(room, text), None));
    }

    /// Says something to the room under its own id and waits until it is stored.
    pub(crate) async fn says_with_id(&mut self, room: &Room, text: &str, id: &str) -> u64 {
        self.sends(1003, self.chat(&to_room(room, text), Some(id)));
        self.is_stored(id).await
    }

    /// Says something to the room and waits until it is stored; returns its msgId.
    pub(crate) async fn says_surely(&mut self, room: &Room, text: &str) -> u64 {
        self.says_with_id(room, text, &fresh_id()).await
    }

    /// Says something to one person.
    pub(crate) fn whispers(&self, to: &Person, text: &str) {
        self.sends(1003, self.chat(&to_person(to, text), None));
    }

    /// Says something to one person and waits until it is stored; returns its msgId.
    pub(crate) async fn whispers_surely(&mut self, to: &Person, text: &str) -> u64 {
        let id = fresh_id();
        self.sends(1003, self.chat(&to_person(to, text), Some(&id)));
        self.is_stored(&id).await
    }

    async fn is_stored(&mut self, id: &str) -> u64 {
        let receipt = self.receipt().await;
        assert_eq!(receipt.client_msg_id.as_deref(), Some(id), "{receipt:?}");
        receipt
            .outcome
            .unwrap_or_else(|reason| panic!("{} was refused: {reason}", self.person.name))
    }

    /// Acknowledges these messages by hand.
    pub(crate) fn acks(&self, msg_ids: &[u64]) {
        let ids: Vec<_> = msg_ids.iter().map(u64::to_string).collect();
        self.sends(1005, json!({ "appId": APP, "userId": self.person.id, "msgIds": ids }));
    }

    /// Sends a heartbeat and hears it answered. Everything sent before it was read by then.
    pub(crate) async fn heartbeat(&mut self) {
        self.sends(1004, json!({ "appId": APP, "userId": self.person.id }));
        self.is_answered(1004, "true").await;
    }

    /// Keeps the heart beating until `other` is over.
    pub(crate) async fn beats_during<T>(
        &mut self,
        every: Duration,
        other: impl Future<Output = T>,
    ) -> T {
        let mut beat = tokio::time::interval(every);
        tokio::pin!(other);
        loop {
            tokio::select! {
                done = &mut other => return done,
                _ = beat.tick() => self.heartbeat().await,
            }
        }
    }

    /// Says goodbye; the server answers and closes.
    pub(crate) async fn logout(mut self) {
        self.sends(1002, json!({ "appId": APP, "userId": self.person.id }));
        self.is_answered(1002, "true").await;
        let ending = self.is_closed().await;
        let expected = matches!(self.line, Line::Ws(_)).then_some(1000);
        assert_eq!(ending.code, expected, "{ending:?}");
    }

    /// The line goes dead without a logout or a close frame.
    pub(crate) fn drops_without_goodbye(self) {
        drop(self);
    }

    /// Stops taking bytes off the line; the kernel's buffers fill.
    pub(crate) fn stops_reading(&self) {
        self.reading.send_replace(false);
    }

    pub(crate) fn reads_again(&self) {
        self.reading.send_replace(true);
    }
}

fn to_room(room: &Room, text: &str) -> Value {
    json!({ "roomId": room.0, "type": 1, "content": text })
}

fn to_person(person: &Person, text: &str) -> Value {
    json!({ "objectId": person.id, "content": text })
}
