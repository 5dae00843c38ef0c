//! The log told again: what happened in a room, what the room was, in a file, in a sandbox and
//! on a page (`docs/DEBUGGING.md`).

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{BufReader, Lines};
use tokio::process::ChildStdout;
use tokio::time::{sleep, timeout};

use crate::harness::chromium::Browser;
use crate::harness::{
    FAST, How, Nats, PATIENCE, Person, Process, Request, Room, Socket, Stack, eventually, fresh_id,
    on_a_terminal, run_to_end,
};

/// Gateway and people have names and numbers of the story's own, so that what is shown is known.
const NAMED: &[(&str, &str)] = &[("QIYU_GATEWAY_ID", "g1")];

/// `qiyu replay` on the data of `stack`: what it showed.
async fn replay(stack: &Stack, args: &[&str]) -> String {
    let dir = stack.data_dir();
    succeeds(&[&["replay", "--data-dir", &dir], args].concat()).await
}

async fn succeeds(args: &[&str]) -> String {
    let output = run_to_end(args, &[]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn fails(args: &[&str]) -> String {
    let output = run_to_end(args, &[]).await;
    assert!(!output.status.success(), "{args:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn lines(json: &str) -> Vec<Value> {
    json.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

/// The same columns without what differs from run to run: times, dates and gateways' lives are
/// zeros, the id at the end of a line is written out.
fn normalised(shown: &str) -> String {
    let line = |line: &str| {
        if line.ends_with("(UTC)") {
            return "0000-00-00 (UTC)".to_owned();
        }
        let timed = line.as_bytes().get(2) == Some(&b':');
        if !timed {
            return line.to_owned();
        }
        let (time, rest) = line.split_at(12);
        let zeros = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "0");
        let (time, mut rest) = (zeros(time), rest.to_owned());
        if let Some(at) = rest.find("life ").map(|at| at + "life ".len()) {
            rest.replace_range(at..at + 13, &zeros(&rest[at..at + 13]));
        }
        let kept = rest.trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = rest.len() - kept.len();
        format!("{time}{kept}{:>digits$}", "ID")
    };
    shown.lines().map(|text| line(text) + "\n").collect()
}

/// Columns of a line, where only these wide characters occur.
fn columns(line: &str) -> usize {
    line.chars()
        .map(|c| if ('\u{3000}'..'\u{a000}').contains(&c) || c == '，' { 2 } else { 1 })
        .sum()
}

/// An evening: people come and go, talk, are muted, and the room closes. Ends with the closing.
struct Evening {
    anchor: Person,
    bob: Person,
    room: Room,
    /// msgId, and how many were inside right after it, as the page showed it.
    counted: Vec<(u64, u64)>,
}

async fn evening(stack: &Stack) -> Evening {
    let anchor = {
        let params = [("nickName", "安妮"), ("userId", "100001"), ("vip", "true")];
        stack.stranger().logs_in(&params).await
    };
    let bob = stack.person_numbered("bob", 100_002).await;
    let late = stack.person_numbered("lucy", 285_608_972_927_369_217).await;
    let room = anchor.opens_room().await;
    let mut counted = Vec::new();
    let mut ann = anchor.ws_into(&room).await;
    let mut bobs = bob.ws_into(&room).await;
    let count = async |n: u64| {
        eventually("the page counts who is inside", PATIENCE, async || {
            anchor.counts(&room).await == n
        })
        .await;
        n
    };
    let first = ann.says_surely(&room, "旗鱼直播间开播了，欢迎大家来喝茶聊天，今晚有好茶").await;
    bobs.hears("旗鱼直播间开播了，欢迎大家来喝茶聊天，今晚有好茶").await;
    counted.push((first, count(2).await));
    let trick = "\u{1b}[2J\u{1b}]0;owned\u{7} look\u{202e}!";
    bobs.says_surely(&room, trick).await;
    ann.hears(trick).await;
    bobs.sends(1003, bobs.chat(&json!({ "roomId": room.0, "content": "casino" }), None));
    bobs.is_refused(4009).await;
    let mut lucy = late.ws_into(&room).await;
    let second = lucy.says_surely(&room, "late, but here").await;
    ann.hears("late, but here").await;
    counted.push((second, count(3).await));
    ann.whispers_surely(&bob, "between us").await;
    bobs.hears_until("between us").await;
    let (number, user) = (room.to_string(), bob.id.to_string());
    let mute = [("roomId", number.as_str()), ("userId", user.as_str()), ("reason", "loud")];
    anchor.gets("/living/mute", &mute).await;
    bobs.is_told(5610).await;
    let body = bobs.chat(&json!({ "roomId": room.0, "content": "let me speak" }), Some("m"));
    bobs.sends(1003, body);
    bobs.is_refused(4010).await;
    ann.sends(
        1003,
        json!({ "bizCode": 5602, "data": format!(r#"{{"roomId":{room},"count":3}}"#) }),
    );
    eventually("the likes are counted", PATIENCE, async || {
        lucy.is_told(5602).await["data"].as_str().is_some_and(|data| data.contains("\"goodNum\":3"))
    })
    .await;
    bobs.logout().await;
    count(2).await;
    let third = lucy.says_surely(&room, "bye, bob").await;
    ann.hears("bye, bob").await;
    counted.push((third, 2));
    stack.owes_nothing().await;
    anchor.closes(&room).await;
    lucy.is_told(5600).await;
    Evening { anchor, bob, room, counted }
}

async fn evening_stack(home: &TempDir) -> (Stack, Evening) {
    let words = home.path().join("words.txt");
    std::fs::write(&words, "casino\n").unwrap();
    let settings = [NAMED, &[("QIYU_WORDS_FILE", words.to_str().unwrap())]].concat();
    let stack = Stack::with(&settings).await;
    let evening = evening(&stack).await;
    (stack, evening)
}

/// As it is shown when its gateway has gone, too; only what a busy machine may batch otherwise is
/// left out.
const GOLDEN: &str = include_str!("replay/evening.txt");

/// A screen without what sets its colours.
fn uncoloured(screen: &str) -> String {
    let mut parts = screen.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').expect("a colour").1)
}

#[tokio::test]
async fn a_room_is_told_again_as_it_was_whether_or_not_it_runs() {
    let home = TempDir::new().unwrap();
    let (mut stack, evening) = evening_stack(&home).await;
    let room = evening.room.to_string();
    let shown = replay(&stack, &["--room", &room]).await;
    assert!(GOLDEN.starts_with(&normalised(&shown)), "{shown}");
    assert!(shown.lines().all(|line| columns(line) <= 80), "{shown}");
    let active = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(!shown.contains(active), "{shown:?}");

    let dir = stack.data_dir();
    let typed = ["replay", "--data-dir", &dir, "--room", &room];
    let screen = on_a_terminal(&typed, 80, ("NO_COLOR", "")).await;
    assert!(screen.contains("\u{1b}[32msaid\u{1b}[0m"), "a terminal has colours: {screen:?}");
    assert_eq!(uncoloured(&screen), shown, "and the same text");
    assert_eq!(on_a_terminal(&typed, 80, ("NO_COLOR", "1")).await, shown, "none were wanted");
    let wide = uncoloured(&on_a_terminal(&typed, 120, ("NO_COLOR", "")).await);
    assert!(wide.lines().count() < shown.lines().count(), "nothing wraps: {wide}");
    assert!(wide.lines().skip(1).all(|line| columns(line) == 120), "all is filled: {wide}");

    let json = replay(&stack, &["--room", &room, "--format", "json"]).await;
    assert!(!json.contains(active), "{json:?}");
    let told = lines(&json);
    let kinds: Vec<&str> = told.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    let expected =
        "opened joined joined said said refused joined said muted liked left said closed";
    assert_eq!(kinds.join(" "), expected);
    let said = &told[4];
    assert_eq!(
        (&said["user"], &said["room"], &said["name"], &said["content"]),
        (
            &evening.bob.id.into(),
            &evening.room.0.into(),
            &"bob".into(),
            &"\u{1b}[2J\u{1b}]0;owned\u{7} look\u{202e}!".into()
        )
    );
    // A window by msgId, both ends included; and none of another room.
    let (from, to) = (evening.counted[1].0.to_string(), told[8]["msgId"].as_str().unwrap());
    let window = ["--room", &room, "--from", &from, "--to", to, "--format", "json"];
    assert_eq!(lines(&replay(&stack, &window).await), told[7..9]);
    let later = ["--room", &room, "--from", "now", "--format", "json"];
    assert_eq!(replay(&stack, &later).await, "");
    let refused = fails(&["replay", "--from", "soon"]).await;
    assert!(refused.contains("10m ago"), "{refused}");

    stack.stops().await;
    let after = replay(&stack, &["--room", &room]).await;
    let since = after.strip_prefix(&shown).expect("its NATS was started to read the same");
    assert!(since.contains("gone      g1 "), "and that the gateway went: {since}");
    assert_eq!(normalised(&after), GOLDEN, "{after}");
    assert!(after.lines().all(|line| columns(line) <= 80), "{after}");
    stack.starts_again().await;
    stack.stop().await;
}

#[tokio::test]
async fn the_room_at_any_message_is_what_the_live_system_said_it_was() {
    let home = TempDir::new().unwrap();
    let (stack, evening) = evening_stack(&home).await;
    let room = evening.room.to_string();
    let state = async |at: &str| -> Value {
        let args = ["--state", "--room", &room, "--at", at, "--format", "json"];
        serde_json::from_str(&replay(&stack, &args).await).unwrap()
    };
    for (msg_id, inside) in &evening.counted {
        let then = state(&msg_id.to_string()).await;
        let shown = (&then["watchNum"], &then["open"], &then["host"], &then["hostInside"]);
        let expected = (&json!(inside), &json!(true), &json!(evening.anchor.id), &json!(true));
        assert_eq!(shown, expected, "{then}");
        assert_eq!(then["members"].as_array().unwrap().len() as u64, *inside);
    }
    let third = state(&evening.counted[2].0.to_string()).await;
    let measure = &third["measures"][0];
    assert_eq!((&measure["user"], &measure["measure"]), (&evening.bob.id.into(), &"mute".into()));
    assert_eq!(third["goodNum"], 3);
    let member = &third["members"][0];
    assert_eq!((&member["gateway"]["id"], &member["connection"]), (&"g1".into(), &1.into()));
    let second = state(&evening.counted[1].0.to_string()).await;
    assert_eq!((&second["measures"], &second["goodNum"]), (&json!([]), &json!(0)), "not yet");
    let now = state("now").await;
    assert_eq!((&now["open"], &now["watchNum"]), (&json!(false), &json!(0)), "{now}");
    let before = state("2h ago").await;
    assert_eq!(before["known"], false, "{before}");
    stack.stop().await;
}

#[tokio::test]
async fn a_user_is_found_wherever_they_were() {
    let home = TempDir::new().unwrap();
    let (stack, evening) = evening_stack(&home).await;
    let kinds = async |user: u64, more: &[&str]| {
        let user = user.to_string();
        let args = [&["--user", &user, "--format", "json"], more].concat();
        let told = lines(&replay(&stack, &args).await);
        let mut kinds: Vec<String> =
            told.iter().map(|line| line["kind"].as_str().unwrap().to_owned()).collect();
        kinds.dedup();
        kinds
    };
    let bob = kinds(evening.bob.id, &[]).await;
    for kind in ["online", "joined", "said", "refused", "wrote", "muted", "left", "offline"] {
        assert!(bob.iter().any(|k| k == kind), "{kind} is missing: {bob:?}");
    }
    let wrote = async |more: &[&str]| {
        kinds(evening.anchor.id, more).await.iter().any(|kind| kind == "wrote")
    };
    assert!(!wrote(&[]).await, "who wrote to others is found among everybody's messages");
    assert!(wrote(&["--wide"]).await);
    stack.stop().await;
}

#[tokio::test]
async fn a_capsule_tells_the_same_without_a_log() {
    let home = TempDir::new().unwrap();
    let (stack, evening) = evening_stack(&home).await;
    let file = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let room = evening.room.to_string();
    let (whole, part, redacted) = (file("whole"), file("part"), file("redacted"));
    let from = evening.counted[1].0.to_string();
    replay(&stack, &["--room", &room, "--save", &whole]).await;
    replay(&stack, &["--room", &room, "--from", &from, "--save", &part]).await;
    let secret = ["--room", &room, "--from", &from, "--save", &redacted, "--redact"];
    replay(&stack, &secret).await;
    let shown = replay(&stack, &["--room", &room]).await;
    let at = evening.counted[2].0.to_string();
    let live = replay(&stack, &["--state", "--room", &room, "--at", &at]).await;
    let dir = stack.data_dir();
    let again = fails(&["replay", "--data-dir", &dir, "--room", &room, "--save", &whole]).await;
    assert!(again.contains(&whole), "it is not written over: {again}");
    stack.stop().await;

    assert_eq!(succeeds(&["replay", "--load", &whole]).await, shown);
    for capsule in [&whole, &part] {
        assert_eq!(succeeds(&["replay", "--load", capsule, "--state", "--at", &at]).await, live);
    }
    let told = succeeds(&["replay", "--load", &redacted, "--format", "json"]).await;
    for typed in ["late", "bye", "lucy", "bob", "loud", "安妮", "faces.example"] {
        assert!(!told.contains(typed), "{typed} is in {told}");
    }
    assert_eq!(lines(&told)[0]["user"], 285_608_972_927_369_217_u64);

    let bytes = std::fs::read(&whole).unwrap();
    let cut = file("cut");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let refused = fails(&["replay", "--load", &cut]).await;
    assert!(refused.contains("capsule") && !refused.contains("panicked"), "{refused}");
}

#[tokio::test]
async fn a_room_lives_again_in_a_sandbox_and_never_where_it_lived() {
    let home = TempDir::new().unwrap();
    let (stack, evening) = evening_stack(&home).await;
    let room = evening.room.to_string();
    let url = |stack: &Stack| {
        let path = Path::new(&stack.data_dir()).join("nats.url");
        std::fs::read_to_string(path).unwrap()
    };
    // Only what is said: people come and go by themselves meanwhile.
    let said = format!("im.in.*.*.room.{room}.msg");
    let mut bus = Nats::of(Path::new(&stack.data_dir())).await;
    let before = bus.messages_under("IM_IN", &said).await;
    let (dir, here) = (stack.data_dir(), url(&stack));
    let itself = ["replay", "--data-dir", &dir, "--room", &room, "--into", &here, "--speed", "max"];
    let refused = fails(&itself).await;
    assert!(refused.contains("nothing was written"), "{refused}");
    assert!(0 < before);
    assert_eq!(bus.messages_under("IM_IN", &said).await, before);

    // Up to the last word, so that the room is open there and can be entered.
    let sandbox = Stack::start().await;
    let (there, last) = (url(&sandbox), evening.counted[2].0.to_string());
    let first = evening.counted[1].0.to_string();
    let into =
        ["--room", &room, "--from", &first, "--to", &last, "--into", &there, "--speed", "max"];
    replay(&stack, &into).await;
    let visitor = sandbox.person("visitor").await;
    eventually("the room is open there", PATIENCE, async || {
        visitor.looks_at(&evening.room).await["roomId"] == evening.room.0
    })
    .await;
    let history = visitor.gets("/im/history", &[("roomId", &room)]).await.to_string();
    assert!(history.contains("late, but here") && history.contains("bye, bob"), "{history}");
    eventually("whose gateway is not there is not inside", PATIENCE, async || {
        visitor.counts(&evening.room).await == 0
    })
    .await;
    let kinds: Vec<String> = lines(&replay(&sandbox, &["--room", &room, "--format", "json"]).await)
        .iter()
        .map(|line| line["kind"].as_str().unwrap().to_owned())
        .collect();
    let expected = "opened joined joined joined said muted liked left said gone";
    assert_eq!(kinds.join(" "), expected, "what was before, the window, and an end");
    let [mut ann, mut bob] = sandbox.browsers(&evening.room, ["ann", "bob"]).await;
    ann.says_surely(&evening.room, "it lives").await;
    bob.hears("it lives").await;
    let other = sandbox.anchor("other").await.opens_room().await;
    assert!(evening.room < other, "its id is not given again");

    // A second play goes on with what the first left, and likes add up.
    replay(&stack, &into).await;
    for text in ["late, but here", "bye, bob"] {
        ann.hears(text).await;
    }
    let now = replay(&sandbox, &["--state", "--room", &room, "--format", "json"]).await;
    let now: Value = serde_json::from_str(&now).unwrap();
    assert_eq!((&now["goodNum"], &now["watchNum"]), (&json!(6), &json!(2)), "{now}");
    // Once the closing was played there, nothing more is.
    let whole = ["--room", &room, "--into", &there, "--speed", "max"];
    replay(&stack, &whole).await;
    bob.is_told(5600).await;
    let mut bus = Nats::of(Path::new(&sandbox.data_dir())).await;
    let dir = stack.data_dir();
    let refused = fails(&[&["replay", "--data-dir", &dir], &whole[..]].concat()).await;
    assert!(refused.contains("use a fresh sandbox"), "{refused}");
    assert_eq!(bus.messages_under("IM_IN", &said).await, 9, "2, hers, 2 and 4");
    sandbox.stop().await;
    stack.stop().await;
}

#[tokio::test]
async fn last_nights_room_is_watched_by_a_page_and_by_any_client() {
    let home = TempDir::new().unwrap();
    let (stack, evening) = evening_stack(&home).await;
    let room = evening.room;
    let capsule = home.path().join("capsule").to_str().unwrap().to_owned();
    replay(&stack, &["--room", &room.to_string(), "--save", &capsule]).await;
    let watcher = stack.person("watcher").await;
    let settings = [
        ("QIYU_HTTP_LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
        ("QIYU_WS_LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
    ];
    let args = ["replay", "--load", &capsule, "--serve", "--speed", "max"];
    let log = home.path().join("serve.log");
    let mut show = Process::starts(&args, &settings, &log, &["page", "websocket"]).await;
    let http = show.address("page").split('/').next().unwrap().to_owned();

    let door = crate::harness::Door { ws: show.address("websocket"), ..Default::default() };
    let viewer = watcher.via(&door);
    let path = format!("/any/{}/1001/{room}", viewer.id);
    let mut socket = viewer.knocks(&path, &[]).await.expect("everybody may watch").enters().await;
    let first = socket.hears_something().await;
    assert_eq!(first.msg_id, evening.counted[0].0, "under the msgIds of that night");
    let heard = socket.hears_until("bye, bob").await;
    assert!(heard.iter().all(|heard| heard.text() != "casino"), "nobody heard that");
    socket.is_told(5600).await;
    let body = socket.chat(&json!({ "roomId": room.0, "content": "me too" }), Some("x"));
    socket.sends(1003, body);
    socket.is_refused(4006).await;
    socket.heartbeat().await;
    socket.logout().await;
    let back = format!("{path}?lastMsgId={}", evening.counted[1].0);
    let mut again = viewer.knocks(&back, &[]).await.expect("and come back").enters().await;
    again.hears("bye, bob").await;
    let nowhere = format!("/any/{}/1001/{}", viewer.id, room.0 + 1);
    assert_eq!(viewer.knocks(&nowhere, &[]).await.err(), Some(404));

    let list = Request::post("/living/list", &[("type", "1")], How::Form).send(&http).await;
    assert_eq!(list.answer().success()["list"][0]["id"], room.0);
    let browser = Browser::starts().await;
    let tab = browser.opens("the page", &format!("http://{http}/#/room/{room}")).await;
    tab.clicks("#continue").await;
    tab.reads("#messages", "late, but here").await;
    tab.reads("#link", "直播已结束").await;
    assert_eq!(tab.troubles(), Vec::<String>::new());
    tab.closes().await;
    browser.closes().await;
    show.stops().await;
    stack.stop().await;
}

#[tokio::test]
async fn a_reader_that_is_killed_leaves_nothing_behind() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    ann.says_surely(&room, "hello").await;
    bob.hears("hello").await;
    let dir = stack.data_dir();
    let mut nats = Nats::of(Path::new(&dir)).await;
    // A resume or a living's replay may come and go: the least seen is what is always there.
    let quiet = nats.readers_of("IM_IN").await;
    let home = TempDir::new().unwrap();
    let args = ["replay", "--data-dir", &dir, "--follow"];
    let mut follower = Process::starts(&args, &[], &home.path().join("log"), &[]).await;
    eventually("it reads", PATIENCE, async || quiet < nats.readers_of("IM_IN").await).await;
    follower.is_sent(Signal::KILL);
    follower.is_gone().await;
    eventually("its consumer is gone", Duration::from_secs(30), async || {
        nats.readers_of("IM_IN").await <= quiet
    })
    .await;
    // And one that ends by itself takes it along.
    replay(&stack, &["--room", &room.to_string()]).await;
    assert!(nats.readers_of("IM_IN").await <= quiet);
    stack.stop().await;
}

/// The next line of what a process prints. A line comes when it is due, and then soon.
async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = timeout(PATIENCE * 3, lines.next_line()).await.expect("a line comes");
    let line = line.expect("stdout can be read").expect("and does not end here");
    serde_json::from_str(&line).expect("a line is JSON")
}

/// The next line about something that was said.
async fn next_said(lines: &mut Lines<BufReader<ChildStdout>>) -> (String, u64) {
    loop {
        let told = next(lines).await;
        if told["kind"] == "said" {
            let id = told["msgId"].as_str().unwrap().parse().unwrap();
            return (told["content"].as_str().unwrap().to_owned(), id);
        }
    }
}

#[tokio::test]
async fn a_replay_keeps_the_distances_at_the_speed_that_is_asked_for() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut ann] = stack.browsers(&room, ["ann"]).await;
    let first = ann.says_surely(&room, "one").await;
    // What is to be kept: the log knows how long it really was.
    sleep(Duration::from_secs(1)).await;
    ann.says_surely(&room, "two").await;
    sleep(Duration::from_secs(2)).await;
    let last = ann.says_surely(&room, "three").await;
    let (dir, home) = (stack.data_dir(), TempDir::new().unwrap());
    let (room, from, to) = (room.to_string(), first.to_string(), last.to_string());
    let window = ["--room", &room, "--from", &from, "--to", &to, "--format", "json"];
    // What it told, and when each line was there, ms after it was started.
    let plays = async |speed: &str| -> (Vec<Value>, Vec<f64>) {
        let args = [&["replay", "--data-dir", &dir, "--speed", speed], &window[..]].concat();
        let began = Instant::now();
        let (mut process, mut lines) = Process::tells(&args, &home.path().join(speed));
        let (mut told, mut taken) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            told.push(next(&mut lines).await);
            taken.push(began.elapsed().as_secs_f64() * 1e3);
        }
        process.ends_well().await;
        (told, taken)
    };
    // At once, so that they meet the same machine.
    let ((as_it_was, slow), (told, fast)) = tokio::join!(plays("1x"), plays("10x"));
    assert_eq!(as_it_was, told);
    let at: Vec<f64> = told.iter().map(|line| line["atMs"].as_f64().unwrap()).collect();
    assert!(3_000.0 <= at[2] - at[0], "{at:?}");
    for line in 0..3 {
        let distance = at[line] - at[0];
        assert!(distance <= slow[line], "line {line} at 1x: {slow:?} of {at:?}");
        assert!(distance / 10.0 <= fast[line], "line {line} at 10x: {fast:?} of {at:?}");
    }
    assert!(fast[2] < slow[2], "ten times as fast is faster: {fast:?}, {slow:?}");
    stack.stop().await;
}

#[tokio::test]
async fn what_is_appended_is_followed_until_ctrl_c_or_until_nobody_reads() {
    let stack = Stack::start().await;
    let (room, elsewhere) = (stack.room().await, stack.room().await);
    let [mut ann] = stack.browsers(&room, ["ann"]).await;
    let [mut bob] = stack.browsers(&elsewhere, ["bob"]).await;
    let before = ann.says_surely(&room, "before").await;
    let (dir, home) = (stack.data_dir(), TempDir::new().unwrap());
    let mut nats = Nats::of(Path::new(&dir)).await;
    let quiet = nats.readers_of("IM_IN").await;
    let number = room.to_string();
    let follow = |name: &str, more: &[&str]| {
        let args = ["replay", "--data-dir", &dir, "--follow", "--format", "json"];
        Process::tells(&[&args[..], more].concat(), &home.path().join(name))
    };
    let (mut of_room, mut in_room) = follow("room", &["--room", &number]);
    let (mut of_all, mut in_all) = follow("all", &[]);
    let (mut of_nobody, mut unread) = follow("unread", &["--room", &number]);
    for lines in [&mut in_room, &mut in_all, &mut unread] {
        assert_eq!(next_said(lines).await, ("before".to_owned(), before), "what there was");
    }
    // Nothing is said meanwhile: that its reader has left is noticed without.
    drop(unread);
    of_nobody.ends_well().await;
    assert!(!of_nobody.log().contains("panicked"), "{}", of_nobody.log());

    let mut said = Vec::new();
    for n in 0..5 {
        said.push((format!("here {n}"), ann.says_surely(&room, &format!("here {n}")).await));
        said.push((format!("there {n}"), bob.says_surely(&elsewhere, &format!("there {n}")).await));
    }
    for expected in &said {
        assert_eq!(next_said(&mut in_all).await, *expected, "as it comes, in order");
    }
    for expected in said.iter().step_by(2) {
        assert_eq!(next_said(&mut in_room).await, *expected, "and only of the room");
    }
    assert!(quiet < nats.readers_of("IM_IN").await, "they still read");
    for follower in [&mut of_room, &mut of_all] {
        follower.is_sent(Signal::INT);
        follower.ends_well().await;
    }
    // Sooner than the server would clear up behind them.
    eventually("their consumers are gone", Duration::from_secs(5), async || {
        nats.readers_of("IM_IN").await <= quiet
    })
    .await;
    let refused = fails(&["replay", "--follow", "--to", "now"]).await;
    assert!(refused.contains("--to"), "following has no end: {refused}");
    stack.stop().await;
}

#[tokio::test]
async fn measures_everywhere_are_in_a_rooms_state_for_as_long_as_they_held() {
    const KEY: &str = "an-integrator's-key-0123456789";
    let stack = Stack::with(&[("QIYU_API_KEY", KEY)]).await;
    let server = async |verb: &str, body: Value| {
        let mut request = Request::post(&format!("/server/{verb}"), &[], How::Json);
        request.body = body.to_string().into_bytes();
        let reply = stack.sends(request.header("authorization", &format!("Bearer {KEY}"))).await;
        assert_eq!(reply.status, 200, "{verb} {body}: {}", reply.text());
    };
    let room = stack.room().await;
    let [mut bob, mut cid] = stack.browsers(&room, ["bob", "cid"]).await;
    let (bobs, cids) = (bob.person.id, cid.person.id);
    let away = stack.person("somebody elsewhere").await;
    server("mute", json!({ "userId": away.id })).await;
    server("mute", json!({ "userId": bobs, "reason": "loud" })).await;
    bob.is_told(5610).await;
    server("mute", json!({ "userId": cids, "seconds": 3 })).await;
    cid.is_told(5610).await;
    let mut again = None;
    eventually("cid's mute is over", PATIENCE, async || {
        let body = cid.chat(&json!({ "roomId": room.0, "content": "again" }), Some(&fresh_id()));
        cid.sends(1003, body);
        again = cid.receipt().await.outcome.ok();
        again.is_some()
    })
    .await;
    server("unmute", json!({ "userId": bobs })).await;
    server("ban", json!({ "userId": cids, "seconds": 3600 })).await;
    cid.is_closed_with(3504).await;

    let number = room.to_string();
    let state = async |at: &str| -> Vec<(String, u64, bool)> {
        let args = ["--state", "--room", &number, "--at", at, "--format", "json"];
        let then: Value = serde_json::from_str(&replay(&stack, &args).await).unwrap();
        let measures = then["measures"].as_array().unwrap().iter();
        let shown = measures.map(|held| {
            let measure = held["measure"].as_str().unwrap().to_owned();
            (measure, held["user"].as_u64().unwrap(), held["everywhere"] == true)
        });
        shown.collect()
    };
    // The msgId of what was done to a user.
    let done = async |to: u64, kind: &str| -> String {
        let told = replay(&stack, &["--user", &to.to_string(), "--format", "json"]).await;
        let line = lines(&told).into_iter().find(|line| line["kind"] == kind);
        line.expect("it is in the log")["msgId"].as_str().unwrap().to_owned()
    };
    let mute = |user| ("mute".to_owned(), user, true);
    assert_eq!(state(&done(bobs, "muted").await).await, [mute(bobs)], "nobody who is elsewhere");
    let mut both = [mute(bobs), mute(cids)];
    both.sort();
    assert_eq!(state(&done(cids, "muted").await).await, both);
    let again = again.unwrap().to_string();
    assert_eq!(state(&again).await, [mute(bobs)], "what is over is not shown");
    assert_eq!(state(&done(bobs, "unmuted").await).await, [], "nor what was lifted");
    let ban = ("ban".to_owned(), cids, true);
    assert_eq!(state(&done(cids, "banned").await).await, [ban], "and they were still inside");
    assert_eq!(state("now").await, [], "they are not any more");
    let at = done(bobs, "muted").await;
    let shown = replay(&stack, &["--state", "--room", &number, "--at", &at]).await;
    let row = format!("mute      {bobs} everywhere, until lifted, by the server API ({at}): loud");
    assert!(shown.contains(&row), "{shown}");
    stack.stop().await;
}

/// Ann says something, Bob hears it: ms from the one to the other, sorted.
async fn latencies(ann: &Socket, bob: &mut Socket, room: &Room, times: usize) -> Vec<f64> {
    let mut taken = Vec::new();
    for n in 0..times {
        let began = Instant::now();
        let text = format!("message number {n}");
        ann.says(room, &text);
        bob.hears(&text).await;
        taken.push(began.elapsed().as_secs_f64() * 1e3);
    }
    taken.sort_unstable_by(f64::total_cmp);
    taken
}

#[tokio::test]
async fn reading_everything_over_and_over_does_not_stop_the_living() {
    let stack = Stack::with(FAST).await;
    let room = stack.room().await;
    let [ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    // Something to read: what is said here, too.
    for n in 0..5_000 {
        ann.says(&room, &format!("filler {n}"));
    }
    bob.hears_until("filler 4999").await;
    let times = 300;
    let alone = latencies(&ann, &mut bob, &room, times).await;
    let dir = stack.data_dir();
    let reading = async {
        loop {
            succeeds(&["replay", "--data-dir", &dir, "--format", "json"]).await;
        }
    };
    let watched = tokio::select! {
        () = reading => unreachable!("it reads for ever"),
        watched = latencies(&ann, &mut bob, &room, times) => watched,
    };
    let at = |sorted: &[f64], percent: usize| sorted[(sorted.len() - 1) * percent / 100];
    for (name, taken) in [("alone", &alone), ("while everything is read", &watched)] {
        eprintln!("{name}: p50 {:.2} ms, p99 {:.2} ms", at(taken, 50), at(taken, 99));
    }
    // Only that it goes on: numbers are for docs/DEBUGGING.md, on a machine that does nothing else.
    assert!(at(&watched, 50) < 1_000.0, "{watched:?}");
    stack.stop().await;
}
