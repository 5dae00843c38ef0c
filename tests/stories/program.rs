//! The program itself: settings, starting, stopping, dying, starting again (`docs/PROTOCOL.md` §8).

use std::process::Output;

use crate::harness::{Stack, run_to_end};

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// The names of §8, each with a value that is not its default.
const EVERY_SETTING: &[(&str, &str)] = &[
    ("QIYU_HTTP_LISTEN", "127.0.0.1:18080"),
    ("QIYU_WS_LISTEN", "127.0.0.1:18086"),
    ("QIYU_TCP_LISTEN", "127.0.0.1:18085"),
    ("QIYU_ADVERTISE_WS", "ws.example:443"),
    ("QIYU_ADVERTISE_TCP", "tcp.example:8085"),
    ("QIYU_GATEWAY_ID", "a-gateway"),
    ("QIYU_NATS_URL", "nats://127.0.0.1:14222"),
    ("QIYU_NATS_SERVER", "/nowhere/nats-server"),
    ("QIYU_DATABASE_URL", "mysql://qiyu:the-database-password@db.example/qiyu"),
    ("QIYU_REDIS_URL", "redis://:the-redis-password@cache.example/0"),
    ("QIYU_JWT_SECRET", "the-jwt-secret-0123456789-0123456789-0123456789"),
    ("QIYU_JWKS_FILE", "/nowhere/jwks.json"),
    ("QIYU_API_KEY", "the-api-key-0123456789-0123456789"),
    ("QIYU_DEV_LOGIN", "false"),
    ("QIYU_REPLICAS", "3"),
    ("QIYU_DRAIN_WINDOW", "11s"),
    ("QIYU_ACK_WAIT", "7s"),
    ("QIYU_MAX_SENDS", "3"),
    ("QIYU_IDLE_TIMEOUT", "61s"),
    ("QIYU_LOGIN_DEADLINE", "12s"),
    ("QIYU_TOKEN_TTL", "301s"),
    ("QIYU_MAX_FRAME", "32768"),
    ("QIYU_SEND_RATE", "21"),
    ("QIYU_SEND_BURST", "61"),
    ("QIYU_CONNECT_RATE", "51"),
    ("QIYU_CONNECT_BURST", "501"),
    ("QIYU_HTTP_RATE", "101"),
    ("QIYU_HTTP_BURST", "502"),
    ("QIYU_MULTI_DEVICE", "replace"),
    ("QIYU_APPS", "10001,10002"),
    ("QIYU_ORIGINS", "https://page.example"),
    ("QIYU_PROFILE", "durable"),
    ("QIYU_RETAIN", "73h"),
];

const SECRETS: &[&str] = &["database-password", "redis-password", "jwt-secret", "api-key"];

#[tokio::test]
async fn every_setting_has_a_name_and_no_secret_is_shown() {
    for command in [&["up"][..], &["run", "gateway"], &["run", "fanout,presence,living,api"]] {
        let output = run_to_end(&[command, &["--print-config"]].concat(), EVERY_SETTING).await;
        let said = said(&output);
        assert!(output.status.success(), "{command:?}: {said}");
        for shown in ["7s", "127.0.0.1:18080", "a-gateway", "durable", "***"] {
            assert!(said.contains(shown), "{command:?} does not show {shown}: {said}");
        }
        for secret in SECRETS {
            assert!(!said.contains(&format!("the-{secret}")), "{command:?} shows {secret}");
        }
    }
    let flags = ["up", "--ack-wait", "9s", "--send-rate", "25", "--print-config"];
    let output = run_to_end(&flags, &[("QIYU_ACK_WAIT", "8s"), ("QIYU_SEND_BURST", "75")]).await;
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("9s") && !said.contains("8s"), "a flag comes before a variable: {said}");
    assert!(said.contains("25") && said.contains("75"), "{said}");
}

#[tokio::test]
async fn all_mistakes_are_reported_together() {
    let mistakes = [
        ("QIYU_ACK_WAIT", "soon"),
        ("QIYU_MAX_SENDS", "many"),
        ("QIYU_HTTP_LISTEN", "nowhere"),
        ("QIYU_MULTI_DEVICE", "perhaps"),
        ("QIYU_APPS", "9999"),
        ("QIYU_ACK_WIAT", "4s"),
    ];
    for command in [&["up"][..], &["run", "gateway"]] {
        let output = run_to_end(command, &mistakes).await;
        let said = said(&output);
        assert!(!output.status.success(), "{command:?}: {said}");
        for (key, _) in mistakes {
            assert!(said.contains(key), "{command:?} does not name {key}: {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[tokio::test]
async fn a_role_needs_a_bus_a_name_and_a_secret() {
    for (command, settings, word) in [
        (&["run", "tea"][..], &[][..], "tea"),
        (&["run", "gateway"], &[], "QIYU_NATS_URL"),
        (&["run", "api"], &[("QIYU_NATS_URL", "nats://127.0.0.1:1")], "QIYU_JWT_SECRET"),
    ] {
        let output = run_to_end(command, settings).await;
        assert!(!output.status.success(), "{command:?}");
        assert!(
            said(&output).contains(word),
            "{command:?} does not name {word}: {}",
            said(&output)
        );
    }
}

#[tokio::test]
async fn a_restart_keeps_rooms_people_and_the_order_of_messages() {
    let mut stack = Stack::start().await;
    let anchor = stack.anchor("anchor").await;
    let room = anchor.opens_room().await;
    let (ann, bob) = (stack.person("ann").await, stack.person("bob").await);
    let mut speaker = ann.ws_into(&room).await;
    let mut last = speaker.says_with_id(&room, "before", "the-same").await;
    let whisper = speaker.whispers_surely(&bob, "while you were away").await;

    for _ in 0..2 {
        stack.stops().await;
        speaker.is_closed().await;
        stack.starts_again().await;
        assert_eq!(anchor.looks_at(&room).await["roomId"], room.0, "the room is open");
        assert_eq!(anchor.opens_room().await, room);
        speaker = ann.tcp_into(&room).await;
        assert!(last < speaker.entered_at());
        let again = speaker.says_with_id(&room, "after", &format!("after-{last}")).await;
        assert!(last < again, "{again} does not come after {last}");
        last = again;
    }
    assert_eq!(bob.ws().await.hears("while you were away").await.msg_id, whisper);
    let other = stack.anchor("other").await.opens_room().await;
    assert!(room < other);
    stack.stop().await;
}

#[tokio::test]
async fn a_sudden_death_leaves_no_child_and_loses_nothing_that_was_confirmed() {
    let mut stack = Stack::start().await;
    let anchor = stack.anchor("anchor").await;
    let room = anchor.opens_room().await;
    let (ann, bob) = (stack.person("ann").await, stack.person("bob").await);
    let mut speaker = ann.ws_into(&room).await;
    let confirmed = speaker.says_with_id(&room, "confirmed", "confirmed").await;
    let whisper = speaker.whispers_surely(&bob, "for bob").await;

    stack.is_killed().await;
    speaker.is_closed().await;
    stack.starts_again().await;
    let mut speaker = ann.ws_into(&room).await;
    let again = speaker.says_with_id(&room, "confirmed", "confirmed").await;
    assert_eq!(again, confirmed, "it knows what it confirmed");
    let mut listener = bob.ws_into(&room).await;
    assert_eq!(listener.hears("for bob").await.msg_id, whisper);
    speaker.says(&room, "alive");
    listener.hears("alive").await;
    stack.stop().await;
}

#[tokio::test]
async fn two_cannot_live_in_one_directory() {
    let stack = Stack::start().await;
    let dir = stack.data_dir();
    let listen = ["QIYU_HTTP_LISTEN", "QIYU_WS_LISTEN", "QIYU_TCP_LISTEN"];
    let output =
        run_to_end(&["up", "--data-dir", &dir], &listen.map(|key| (key, "127.0.0.1:0"))).await;
    let said = said(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains(&dir), "it does not say which directory: {said}");
    assert!(!said.contains("panicked"), "{said}");

    let room = stack.room().await;
    let [mut ann, bob] = stack.browsers(&room, ["ann", "bob"]).await;
    ann.hears_nothing_else(&bob, &room).await;
    stack.stop().await;
}

#[tokio::test]
async fn every_process_tells_how_it_is() {
    const EACH_ALONE: &[&str] = &["fanout", "presence", "living", "api", "gateway"];
    for roles in [EACH_ALONE, &["gateway,api", "living,presence,fanout"]] {
        let stack = Stack::roles(roles, &[]).await;
        for path in ["/healthz", "/readyz", "/metrics"] {
            for (roles, reply) in stack.get_from_each(path).await {
                assert_eq!(reply.status, 200, "{path} of {roles}: {}", reply.text());
                let metrics = reply.text().lines().any(|line| line.starts_with("qiyu_"));
                assert!(path != "/metrics" || metrics, "{roles} measures nothing");
            }
        }
        let room = stack.room().await;
        let [mut ann, bob] = stack.browsers(&room, ["ann", "bob"]).await;
        ann.hears_nothing_else(&bob, &room).await;
        stack.stop().await;
    }
}

#[tokio::test]
async fn all_in_one_tells_how_it_is_and_measures_what_it_does() {
    let stack = Stack::start().await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(stack.get(path).await.status, 200, "{path}");
    }
    let metrics = stack.get("/metrics").await.text();
    let samples = metrics.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    for sample in samples {
        let (_, number) = sample.rsplit_once(' ').unwrap_or_else(|| panic!("{sample}"));
        assert!(number.parse::<f64>().is_ok(), "{sample}");
    }
    stack.stop().await;
}

#[tokio::test]
async fn not_even_a_talkative_log_tells_what_people_say() {
    let stack = Stack::with(&[("QIYU_LOG", "debug")]).await;
    let room = stack.room().await;
    let [ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    ann.says(&room, "the-words-of-ann");
    bob.hears("the-words-of-ann").await;
    let phone = stack.phone(&room, "cid").await;
    phone.logout().await;
    let log = stack.log();
    assert!(!log.is_empty() && !log.contains("the-words-of-ann"), "{log}");
    stack.stop().await; // looks for tokens, too
}
