//! The browser's door and its frames (`docs/PROTOCOL.md` §2.2 and §2.5).

use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

use crate::harness::{Room, Socket, Stack, percent};

const NO_ROOM: &str = "999999999";

#[tokio::test]
async fn the_door_answers_the_first_mistake_it_finds() {
    let stack = Stack::start().await;
    let anchor = stack.anchor("anchor").await;
    let closed = anchor.opens_room().await;
    anchor.closes(&closed).await;
    let room = anchor.opens_room().await;
    let ann = stack.person("ann").await;
    let (token, id) = (ann.token().await, ann.id);
    let bobs = stack.person("bob").await.token().await;
    let evil = ("origin", "http://evil.example");

    for (path, headers, status) in [
        // Malformed comes before everything else.
        ("/".to_owned(), vec![evil], 400),
        (format!("/{token}"), vec![evil], 400),
        (format!("/{token}/ann/1001/{room}"), vec![evil], 400),
        (format!("/{token}/-1/1001/{room}"), vec![], 400),
        (format!("/{token}/9999/1001/{room}"), vec![], 400),
        (format!("/nonsense/9999/1001/{room}"), vec![], 400),
        (format!("/{token}/99999999999999999999999/1001/{room}"), vec![], 400),
        (format!("/{token}/{id}/1001"), vec![], 400),
        (format!("/{token}/{id}/1001/"), vec![], 400),
        (format!("/{token}/{id}/1001/tea"), vec![], 400),
        // A page from elsewhere, even with a token that is no good.
        (format!("/{token}/{id}/1001/{room}"), vec![evil], 403),
        (format!("/nonsense/{id}/1001/{room}"), vec![evil], 403),
        // No good token, even for a room that is not open.
        (format!("/nonsense/{id}/1001/{room}"), vec![], 401),
        (format!("/nonsense/{id}/1001/{NO_ROOM}"), vec![], 401),
        (format!("/{bobs}/{id}/1001/{room}"), vec![], 401),
        (format!("/{token}/{}/1001/{room}", id + 1), vec![], 401),
        (format!("/{}/{id}/1001/{room}", ann.bearer()), vec![], 401),
        // A good token, but nothing to enter.
        (format!("/{token}/{id}/1001/{NO_ROOM}"), vec![], 404),
        (format!("/{token}/{id}/1001/{closed}"), vec![], 404),
    ] {
        let answer = ann.knocks(&path, &headers).await.err();
        assert_eq!(answer, Some(status), "{path} {headers:?}");
    }

    // None of these used the token up.
    let path = format!("/{token}/{id}/1001/{room}");
    let ann = ann.knocks(&path, &[]).await.expect("the token is still good").enters().await;
    assert_eq!(ann.person.knocks(&path, &[]).await.err(), Some(401), "it is good for one");
    stack.stop().await;
}

#[tokio::test]
async fn a_page_of_the_same_host_may_come_from_any_port() {
    let stack = Stack::start().await;
    let ann = stack.person("ann").await;
    for origin in ["http://127.0.0.1:8080", "http://127.0.0.1", "https://127.0.0.1:1"] {
        let path = format!("/{}/{}", ann.token().await, ann.id);
        let socket = ann.knocks(&path, &[("origin", origin)]).await.expect(origin);
        socket.enters().await.logout().await;
    }
    stack.stop().await;
}

#[tokio::test]
async fn a_sixth_connection_is_refused_until_one_ends() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let ann = stack.person("ann").await;
    let mut five = Vec::new();
    for _ in 0..2 {
        five.push(ann.ws_into(&room).await);
        five.push(ann.tcp_into(&room).await);
    }
    five.push(ann.ws().await);

    let token = ann.token().await;
    let path = format!("/{token}/{}/1001/{room}", ann.id);
    assert_eq!(ann.knocks(&path, &[]).await.err(), Some(429));
    let mut phone = ann.dials().await;
    phone.sends(1001, ann.login_body(&token, Some(&room)));
    phone.is_answered(1001, "false").await;
    phone.is_closed().await;

    five.remove(0).logout().await;
    let sixth = ann.knocks(&path, &[]).await.expect("there is room for one, with this token");
    let mut sixth = sixth.enters().await;
    let [bob] = stack.browsers(&room, ["bob"]).await;
    bob.says(&room, "to all five");
    for socket in five.iter_mut().take(3).chain([&mut sixth]) {
        socket.hears("to all five").await;
    }
    stack.stop().await;
}

#[tokio::test]
async fn one_token_opens_one_door_however_many_try_at_once() {
    let stack = Stack::start().await;
    let ann = stack.person("ann").await;
    let path = format!("/{}/{}/1004", ann.token().await, ann.id);
    let tries = join_all((0..16).map(|_| ann.knocks(&path, &[]))).await;
    let (won, lost): (Vec<_>, Vec<_>) = tries.into_iter().partition(Result::is_ok);
    let refused: Vec<_> = lost.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused, [401; 15]);
    for socket in won.into_iter().flatten() {
        socket.enters().await.logout().await;
    }
    stack.stop().await;
}

#[tokio::test]
async fn the_token_may_travel_beside_the_path_or_percent_encoded_in_it() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let ann = stack.person("ann").await;

    // The library fails the upgrade unless the server selects one of the two.
    let beside = format!("qiyu, {}", ann.token().await);
    let path = format!("/-/{}/1001/{room}", ann.id);
    let socket = ann.knocks(&path, &[("sec-websocket-protocol", &beside)]).await;
    let mut one = socket.expect("the token beside the path is good").enters().await;
    assert_eq!(one.subprotocol.as_deref(), Some("qiyu"));

    let every_byte =
        |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let id = every_byte(&ann.id.to_string());
    for token in [percent(&ann.token().await), every_byte(&ann.token().await)] {
        let path = format!("/{token}/{id}/%31001/{room}");
        ann.knocks(&path, &[]).await.expect("it is decoded").enters().await;
    }
    let [bob] = stack.browsers(&room, ["bob"]).await;
    bob.says(&room, "welcome");
    one.hears("welcome").await;
    stack.stop().await;
}

#[tokio::test]
async fn one_may_connect_without_entering_a_room() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [bob, mut cid] = stack.browsers(&room, ["bob", "cid"]).await;
    for rest in ["", "/1004", "/1000"] {
        let ann = stack.person("ann").await;
        let path = format!("/{}/{}{rest}", ann.token().await, ann.id);
        let mut ann = ann.knocks(&path, &[]).await.expect(rest).enters().await;
        assert_eq!(ann.welcome()["msgId"], Value::Null, "{rest}");
        bob.says(&room, "to the room");
        cid.hears("to the room").await;
        ann.says(&room, "from outside");
        ann.is_refused(4005).await;
        bob.whispers(&ann.person, "to one");
        ann.hears("to one").await;
    }
    stack.stop().await;
}

/// A frame of a fragmented message.
fn piece(kind: Data, is_final: bool, payload: impl Into<Bytes>) -> Message {
    Message::Frame(Frame::message(payload, OpCode::Data(kind), is_final))
}

fn text_frame(body: impl Into<Value>) -> Value {
    json!({ "magic": 18673, "code": 1004, "body": body.into() })
}

#[tokio::test]
async fn pings_are_answered_and_fragments_joined() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    ann.sends_message(Message::Ping("are you there?".into()));
    assert_eq!(ann.pong().await, "are you there?");

    let body = ann.chat(&json!({ "roomId": room.0, "content": "拼起来" }), None).to_string();
    let text = json!({ "code": 1003, "body": body }).to_string().into_bytes();
    let cut = text.iter().position(|byte| 0x7f < *byte).expect("a character of more than a byte");
    ann.sends_message(piece(Data::Text, false, text[..3].to_vec()));
    ann.sends_message(Message::Ping("in between".into()));
    ann.sends_message(piece(Data::Continue, false, text[3..=cut].to_vec()));
    ann.sends_message(piece(Data::Continue, false, Bytes::new()));
    ann.sends_message(piece(Data::Continue, true, text[cut + 1..].to_vec()));
    assert_eq!(ann.pong().await, "in between");
    bob.hears("拼起来").await;
    stack.stop().await;
}

#[tokio::test]
async fn a_body_may_be_a_string_or_an_object() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let body = |text: &str| ann.chat(&json!({ "roomId": room.0, "content": text }), None);
    for (text, frame) in [
        ("a string", json!({ "code": 1003, "body": body("a string").to_string() })),
        ("an object", json!({ "code": 1003, "body": body("an object") })),
        ("a wrong len", json!({ "code": 1003, "len": -7, "body": body("a wrong len") })),
        ("more fields", json!({ "code": 1003, "seq": [1], "body": body("more fields") })),
    ] {
        ann.sends_message(Message::text(frame.to_string()));
        bob.hears(text).await;
    }
    stack.stop().await;
}

#[tokio::test]
async fn each_broken_message_closes_with_its_own_code() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut bob, cid] = stack.browsers(&room, ["bob", "cid"]).await;
    let text = |value: Value| Message::text(value.to_string());
    let reserved = FrameHeader {
        rsv1: true,
        opcode: OpCode::Data(Data::Text),
        mask: Some([1, 2, 3, 4]),
        ..FrameHeader::default()
    };
    for (name, message, code) in [
        ("binary", Message::binary(text_frame("").to_string()), 1003),
        ("not UTF-8", piece(Data::Text, true, vec![b'{', 0xff, b'}']), 1007),
        ("a body over the limit", text(text_frame("x".repeat(65_537))), 1009),
        ("an object over the limit", text(text_frame(json!({ "x": "x".repeat(65_536) }))), 1009),
        ("a message over 128 KiB", text(json!({ "code": 1004, "x": "x".repeat(131_072) })), 1009),
        ("bad magic", text(json!({ "magic": 18674, "code": 1004 })), 1002),
        ("magic in words", text(json!({ "magic": "18673", "code": 1004 })), 1002),
        ("no JSON", Message::text("oops"), 1002),
        ("nothing", Message::text(""), 1002),
        ("a list", text(json!([1004])), 1002),
        ("no code", text(json!({ "body": "" })), 1002),
        ("a code in words", text(json!({ "code": "1004" })), 1002),
        ("half a code", text(json!({ "code": 1004.5 })), 1002),
        ("a reserved bit", Message::Frame(Frame::from_payload(reserved, "{}".into())), 1002),
        ("a continuation of nothing", piece(Data::Continue, true, "{}"), 1002),
    ] {
        let [mut ann] = stack.browsers(&room, [name]).await; // named in what a failure says
        ann.sends_message(message);
        ann.is_closed_with(code).await;
    }
    for code in [1999, 1000, 1006, 0, -1] {
        let [mut ann] = stack.browsers(&room, ["ann"]).await;
        ann.sends(code, "{}");
        ann.is_refused(4007).await;
        ann.is_closed_with(3505).await;
    }
    bob.hears_nothing_else(&cid, &room).await;
    stack.stop().await;
}

/// The body's own bytes count, not what the text around it makes of them.
#[tokio::test]
async fn a_body_exactly_at_the_limit_is_accepted() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    ann.sends(1004, "x".repeat(65_536));
    ann.is_answered(1004, "true").await;
    ann.sends(1004, "\"".repeat(65_000));
    ann.is_answered(1004, "true").await;

    let empty = json!({ "roomId": room.0, "type": 1, "content": "" });
    let empty = ann.chat(&empty, Some("longest"));
    let longest = "字".repeat((65_536 - empty.to_string().len()) / 3);
    ann.says_with_id(&room, &longest, "longest").await;
    bob.hears(&longest).await;
    stack.stop().await;
}

#[tokio::test]
async fn a_browser_that_closes_is_answered() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut bob, cid] = stack.browsers(&room, ["bob", "cid"]).await;
    for code in [CloseCode::Normal, CloseCode::Away, CloseCode::Library(4321)] {
        let [mut ann] = stack.browsers(&room, ["ann"]).await;
        ann.sends_message(Message::Close(Some(CloseFrame { code, reason: "tab closed".into() })));
        let ending = ann.is_closed().await;
        assert!(ending.code.is_some(), "no close frame came back: {ending:?}");
    }
    let closes = (0..20).map(|number| leaves_politely(&stack, &room, number));
    join_all(closes).await;
    bob.hears_nothing_else(&cid, &room).await;
    stack.stop().await;
}

async fn leaves_politely(stack: &Stack, room: &Room, number: usize) {
    let mut socket: Socket = stack.person(&format!("ann {number}")).await.ws_into(room).await;
    socket.sends_message(Message::Close(None));
    socket.is_closed().await;
}
