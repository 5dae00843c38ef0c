//! What may not be said (`docs/PROTOCOL.md` §2.4, 4009): a list of words, and a webhook.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::harness::{Nats, PATIENCE, Room, Socket, Stack, eventually, fresh_id};

/// What comes of saying it: the message's id, or the reason.
async fn outcome(speaker: &mut Socket, room: &Room, text: &str) -> Result<u64, i64> {
    let said = json!({ "roomId": room.0, "content": text });
    let body = speaker.chat(&said, Some(&fresh_id()));
    speaker.sends(1003, body);
    speaker.receipt().await.outcome
}

#[tokio::test]
async fn a_listed_word_is_refused_recorded_and_heard_by_nobody() {
    let home = tempfile::tempdir().unwrap();
    let words = home.path().join("words");
    std::fs::write(&words, "# not here\nCasino\n赌博\n").unwrap();
    let stack = Stack::with(&[("QIYU_WORDS_FILE", words.to_str().unwrap())]).await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    for bad in ["to the CASINO!", "来赌博吧"] {
        assert_eq!(outcome(&mut ann, &room, bad).await, Err(4009));
        ann.whispers(&bob.person, bad);
        ann.is_refused(4009).await;
    }
    bob.hears_nothing_else(&ann, &room).await;

    let mut nats = Nats::of(Path::new(&stack.data_dir())).await;
    let subject = format!("im.in.*.10001.room.{room}.refused");
    let record = String::from_utf8_lossy(&nats.last_of("IM_IN", &subject).await).into_owned();
    assert!(record.contains("来赌博吧") && record.contains("word: 赌博"), "{record}");

    // The list may grow while people talk, and shrink to nothing.
    std::fs::write(&words, "turnip\n").unwrap();
    eventually("the new word is refused", PATIENCE, async || {
        outcome(&mut ann, &room, "a turnip").await == Err(4009)
    })
    .await;
    assert!(outcome(&mut ann, &room, "the casino again").await.is_ok());
    std::fs::remove_file(&words).unwrap();
    eventually("nothing is refused", PATIENCE, async || {
        outcome(&mut ann, &room, "a turnip").await.is_ok()
    })
    .await;
    stack.stop().await;
}

/// A webhook that says no to spam, nothing to what is slow, and nonsense to what is odd.
async fn webhook() -> (String, mpsc::UnboundedReceiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/check", listener.local_addr().unwrap());
    let (told, questions) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, told.clone()));
        }
    });
    (url, questions)
}

async fn answer(stream: TcpStream, told: mpsc::UnboundedSender<Value>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        while stream.read_line(&mut line).await.ok()? > 2 {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            line.clear();
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        let question: Value = serde_json::from_slice(&body).ok()?;
        let content = question["content"].as_str()?.to_owned();
        told.send(question).ok();
        let answer = match content.as_str() {
            "spam" => r#"{"allow":false,"reason":"we have heard this before"}"#,
            "slow" => return std::future::pending().await,
            "odd" => "I think so",
            _ => r#"{"allow":true}"#,
        };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
        stream.get_mut().write_all((head + answer).as_bytes()).await.ok()?;
    }
}

#[tokio::test]
async fn a_webhook_decides_and_its_silence_is_decided_for_it() {
    for (policy, refused) in [("accept", None), ("refuse", Some(5000))] {
        let (url, mut questions) = webhook().await;
        let settings = [
            ("QIYU_CHECK_URL", url.as_str()),
            ("QIYU_CHECK_SILENCE", policy),
            ("QIYU_CHECK_TIMEOUT", "500ms"),
        ];
        let stack = Stack::with(&settings).await;
        let room = stack.room().await;
        let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
        assert!(outcome(&mut ann, &room, "hello").await.is_ok());
        bob.hears("hello").await;
        let asked = questions.recv().await.unwrap();
        assert_eq!(
            (&asked["userId"], &asked["roomId"], &asked["content"], &asked["bizCode"]),
            (&ann.person.id.into(), &room.0.into(), &"hello".into(), &5555.into())
        );
        assert_eq!(outcome(&mut ann, &room, "spam").await, Err(4009));
        for silence in ["slow", "odd"] {
            let said = outcome(&mut ann, &room, silence).await;
            assert_eq!(said.err(), refused);
            if said.is_ok() {
                bob.hears(silence).await;
            }
        }
        assert!(2.0 <= stack.metric("qiyu_gateway_content_checks_failed_total").await);
        bob.hears_nothing_else(&ann, &room).await;
        stack.stop().await;
    }
}

#[tokio::test]
async fn a_room_whose_anchor_does_not_come_back_is_closed() {
    let mut stack = Stack::with(&[("QIYU_ANCHOR_GRACE", "4s")]).await;
    let (away, back, never) =
        (stack.anchor("away").await, stack.anchor("back").await, stack.anchor("never").await);
    let (empty, kept) = (away.opens_room().await, back.opens_room().await);
    let silent = never.opens_room().await;
    let [mut viewer] = stack.browsers(&empty, ["viewer"]).await;
    back.ws_into(&kept).await.logout().await;
    let _here = back.ws_into(&kept).await;
    away.ws_into(&empty).await.logout().await;
    viewer.is_told(5600).await;
    // The viewers hear it from the log, and the tables follow the log.
    eventually("its row is gone", PATIENCE, async || away.looks_at(&empty).await["roomId"] == -1)
        .await;
    assert_eq!(away.looks_at(&kept).await["roomId"], kept.0, "the anchor was back in time");
    assert_eq!(away.looks_at(&silent).await["roomId"], silent.0, "who never came is not gone");

    // Nobody's memory but the log's: the whole system is away when the time is up.
    let room = away.opens_room().await;
    away.ws_into(&room).await.logout().await;
    stack.stops().await;
    sleep(Duration::from_secs(4)).await; // how long the system is away
    stack.starts_again().await;
    eventually("it is closed by whoever runs it now", PATIENCE, async || {
        away.looks_at(&room).await["roomId"] == -1
    })
    .await;
    stack.stop().await;
}
