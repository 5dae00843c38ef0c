//! A gift service, as an integrator writes one: about a page, in a process of
//! its own, knowing nothing of qiyu but `docs/API.md`.
//!
//! Clients send gifts as business messages (bizCode 7001, data
//! `{"roomId":7,"gift":"rose"}`). They lie in the log, delivered to nobody. This
//! reads them through its own durable consumer, so none is missed while it is
//! down, and tells the room through `qiyu.server.send`. The message's place in
//! the log is the idempotency key: a gift that is read twice is told once.
//!
//! `cargo run --example gifts -- nats://127.0.0.1:4222`

use std::time::Duration;

use anyhow::Context as _;
use async_nats::{
    ConnectOptions, ServerAddr,
    jetstream::{self, AckKind, consumer::pull},
};
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};

/// The bizCode of this service, one of 7000 to 7999.
const GIFT: i32 = 7001;
/// When a gift that could not be told is read again.
const AGAIN: Duration = Duration::from_secs(2);

/// What the log holds, as far as a gift service cares.
#[derive(Deserialize)]
struct Record {
    event: Event,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Event {
    BusinessSent {
        room: Option<u64>,
        sender: Sender,
        biz_code: i32,
        data: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Sender {
    user: Option<u64>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::args().nth(1).context("usage: gifts NATS_URL")?;
    let server: ServerAddr = url.parse().context("read NATS_URL")?;
    // The client library looks at the address only, not at the user in it.
    let options = match (server.username(), server.password()) {
        (Some(user), Some(password)) => {
            // Answers come where this user, and nobody else, may listen.
            ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
                .custom_inbox_prefix(format!("_INBOX.{user}"))
        }
        _ => ConnectOptions::new(),
    };
    let client = options.connect(server).await.context("connect to NATS")?;
    let log = jetstream::new(client.clone()).get_stream("IM_IN").await.context("open the log")?;
    let consumer = pull::Config {
        durable_name: Some("gifts".to_owned()),
        filter_subject: "im.in.*.*.room.*.biz".to_owned(),
        ..Default::default()
    };
    let mut gifts = log.get_or_create_consumer("gifts", consumer).await?.messages().await?;
    eprintln!("waiting for gifts");
    while let Some(gift) = gifts.next().await {
        let Ok(gift) = gift else { continue }; // it is delivered again
        let place = gift.info().map_err(anyhow::Error::from_boxed)?.stream_sequence;
        let settled = match told(&gift.payload, place) {
            None => AckKind::Ack, // none of ours
            Some(message) => match client.request("qiyu.server.send", message).await {
                Ok(answer) if answer.headers.is_none() => AckKind::Ack,
                Ok(answer) => refused(&answer),
                Err(_) => AckKind::Nak(Some(AGAIN)),
            },
        };
        gift.ack_with(settled).await.map_err(anyhow::Error::from_boxed)?;
    }
    Ok(())
}

/// What the room is told of a gift. `None`: this is none.
fn told(payload: &[u8], place: u64) -> Option<bytes::Bytes> {
    let record: Record = rmp_serde::from_slice(payload).ok()?;
    let Event::BusinessSent { room: Some(room), sender, biz_code: GIFT, data } = record.event
    else {
        return None;
    };
    let given: Value = serde_json::from_str(&data).ok()?;
    let data = json!({ "gift": given["gift"], "from": sender.user });
    let key = format!("gift-{place}");
    let message = json!({ "roomId": room, "bizCode": GIFT, "data": data, "idempotencyKey": key });
    Some(message.to_string().into())
}

/// What to do about a gift nobody takes: a room that has closed will not open again.
fn refused(answer: &async_nats::Message) -> AckKind {
    let code = answer.headers.as_ref().and_then(|headers| headers.get("Nats-Service-Error-Code"));
    match code.map(|code| code.as_str()) {
        Some("400" | "404") => AckKind::Term,
        _ => AckKind::Nak(Some(AGAIN)),
    }
}
