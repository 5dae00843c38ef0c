//! The calls of integrators (`docs/API.md`): JSON, real status codes, a key at the door.

use serde_json::{Value, json};

use crate::harness::{How, Nats, PATIENCE, Reply, Request, Room, Stack, eventually, fresh_id};

const KEY: &str = "an-integrator's-key-0123456789";

async fn with_key() -> Stack {
    let stack = Stack::with(&[("QIYU_API_KEY", KEY)]).await;
    stack.keeps_secret(KEY);
    stack
}

fn call(path: &str, body: &Value) -> Request {
    let mut request = Request::post(path, &[], How::Json);
    request.body = body.to_string().into_bytes();
    request
}

/// The reply to a call by somebody who has the key.
async fn asks(stack: &Stack, path: &str, body: Value) -> Reply {
    stack.sends(call(path, &body).header("authorization", &format!("Bearer {KEY}"))).await
}

/// What a call that must be answered is answered with.
async fn gets(stack: &Stack, path: &str, body: Value) -> Value {
    let reply = asks(stack, path, body.clone()).await;
    assert_eq!(reply.status, 200, "{path} {body}: {}", reply.text());
    reply.json()
}

fn msg_id(answer: &Value) -> u64 {
    answer["msgId"].as_str().and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test]
async fn without_the_key_there_is_nothing_to_be_had() {
    let stack = with_key().await;
    let paths = ["send", "batchSend", "token", "online", "kick", "mute", "unmute", "ban", "unban"];
    let paths = paths.map(|verb| format!("/server/{verb}"));
    let members = ["/server/rooms/1/members".to_owned(), "/server/measures".to_owned()];
    for path in paths.iter().chain(&members) {
        let body = json!({ "userId": 100_001 });
        let none = stack.sends(call(path, &body)).await;
        assert_eq!((none.status, &none.json()["code"]), (401, &json!(401)), "{path}");
        let wrong = call(path, &body).header("authorization", "Bearer another-key");
        let wrong = stack.sends(wrong).await;
        assert_eq!((wrong.status, wrong.header("www-authenticate")), (401, Some("Bearer")));
        let bad = stack
            .sends(
                Request { body: b"{".to_vec(), ..call(path, &body) }
                    .header("authorization", &format!("Bearer {KEY}")),
            )
            .await;
        assert_eq!(bad.status, 400, "{path}: {}", bad.text());
    }
    stack.stop().await;

    let stack = Stack::start().await;
    assert_eq!(asks(&stack, "/server/send", json!({})).await.status, 404, "no key is set");
    let described = stack.get("/openapi.json").await.json();
    for (path, item) in described["paths"].as_object().unwrap() {
        let there = match item["get"].is_object() {
            true => stack.get(path).await.status,
            false => stack.get(&path.replace("{id}", "1")).await.status, // a route, but not this way
        };
        assert_eq!(there, if item["get"].is_object() { 200 } else { 405 }, "{path}");
    }
    stack.stop().await;

    let few = [("QIYU_API_KEY", KEY), ("QIYU_HTTP_RATE", "0.01"), ("QIYU_HTTP_BURST", "1")];
    let stack = Stack::with(&few).await;
    stack.sends(call("/server/send", &json!({}))).await;
    let guessing = stack.sends(call("/server/send", &json!({}))).await;
    assert_eq!((guessing.status, &guessing.json()["code"]), (429, &json!(429)));
    assert_eq!(asks(&stack, "/server/send", json!({})).await.status, 400, "who has the key is not");
    stack.stop().await;
}

#[tokio::test]
async fn what_a_server_says_is_a_message_like_any_other() {
    let stack = with_key().await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let say = json!({ "roomId": room.0, "content": "welcome", "senderName": "the house" });
    let first = msg_id(&gets(&stack, "/server/send", say).await);
    for ears in [&mut ann, &mut bob] {
        let heard = ears.hears("welcome").await;
        assert_eq!((heard.msg_id, &heard.data["senderName"]), (first, &json!("the house")));
        assert_eq!((&heard.data["userId"], &heard.data["roomId"]), (&Value::Null, &room.0.into()));
    }
    // In somebody's name: they do not hear themselves.
    let say = json!({ "roomId": room.to_string(), "from": ann.person.id, "content": "it is me" });
    gets(&stack, "/server/send", say).await;
    let heard = bob.hears("it is me").await;
    assert_eq!(
        (&heard.data["userId"], &heard.data["senderName"]),
        (&ann.person.id.into(), &json!("ann"))
    );
    ann.hears_nothing_else(&bob, &room).await;

    // Something that is no chat, as JSON.
    let rose = json!({ "gift": "rose", "count": 3 });
    let give = json!({ "roomId": room.0, "bizCode": 7001, "data": rose });
    gets(&stack, "/server/send", give).await;
    let told = bob.is_told(7001).await;
    assert_eq!(serde_json::from_str::<Value>(told["data"].as_str().unwrap()).unwrap(), rose);
    assert!(told["msgId"].is_string(), "it is acknowledged, resent and resumed");

    // To a user who is away, and to one who is there.
    let cid = stack.person("cid").await;
    let write = json!({ "userId": cid.id, "from": ann.person.id, "content": "call me" });
    gets(&stack, "/server/send", write).await;
    let mut back = cid.ws().await;
    assert_eq!(back.hears("call me").await.data["senderId"], ann.person.id);
    gets(&stack, "/server/send", json!({ "userId": cid.id, "content": "now" })).await;
    back.hears("now").await;

    let history = bob.person.gets("/im/history", &[("roomId", &room.to_string())]).await;
    let list = history["list"].as_array().unwrap();
    assert_eq!(list[0]["msgId"], first.to_string(), "{history}");
    stack.owes_nothing().await;
    stack.stop().await;
}

#[tokio::test]
async fn a_key_stores_once_whatever_way_it_comes() {
    let mut stack = with_key().await;
    let room = stack.room().await;
    let [mut ann, bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let key = fresh_id();
    let say = json!({ "roomId": room.0, "content": "once", "idempotencyKey": key });
    let first = msg_id(&gets(&stack, "/server/send", say.clone()).await);
    assert_eq!(msg_id(&gets(&stack, "/server/send", say.clone()).await), first);
    ann.hears("once").await;
    ann.hears_nothing_else(&bob, &room).await;

    // The bus has forgotten it after a restart; the fold has not.
    stack.stops().await;
    stack.starts_again().await;
    assert_eq!(msg_id(&gets(&stack, "/server/send", say).await), first);

    let messages = json!([
        { "roomId": room.0, "content": "a" },
        { "roomId": 999_999, "content": "b" },
        { "userId": ann.person.id, "content": "c" },
        { "content": "to nobody" },
        { "roomId": room.0, "bizCode": 5600, "content": "d" },
        { "roomId": "no room", "content": "e" },
    ]);
    let batch = json!({ "messages": messages, "idempotencyKey": fresh_id() });
    let answer = gets(&stack, "/server/batchSend", batch.clone()).await;
    let results = answer["results"].as_array().unwrap();
    let codes: Vec<_> = results.iter().map(|result| result["code"].clone()).collect();
    assert_eq!(
        codes,
        [Value::Null, 404.into(), Value::Null, 400.into(), 400.into(), 400.into()],
        "{answer}"
    );
    assert!(msg_id(&results[0]) < msg_id(&results[2]), "in their order");
    assert_eq!(gets(&stack, "/server/batchSend", batch).await, answer, "and once");
    let many = json!({ "messages": vec![json!({}); 101] });
    assert_eq!(asks(&stack, "/server/batchSend", many).await.status, 400);
    // A key that would not do for the last message stores none.
    let long = json!({ "messages": [{ "userId": ann.person.id, "content": "x" }],
        "idempotencyKey": "k".repeat(62) });
    assert_eq!(asks(&stack, "/server/batchSend", long).await.status, 400);
    stack.stop().await;
}

#[tokio::test]
async fn tickets_presence_and_members() {
    let stack = with_key().await;
    let room = stack.room().await;
    let ask = json!({ "userId": "285608972927369217", "nickName": "Zoe", "avatar": "/zoe.png" });
    let ticket = gets(&stack, "/server/token", ask).await;
    assert_eq!(ticket["userId"], 285_608_972_927_369_217_u64);
    let token = ticket["token"].as_str().unwrap();
    stack.keeps_secret(token);
    let zoe = stack.person_numbered("zoe", 285_608_972_927_369_217).await;
    let online = async |ids: Value| gets(&stack, "/server/online", json!({ "userIds": ids })).await;
    assert_eq!(online(json!([zoe.id])).await["list"][0]["online"], false);
    let path = format!("/{token}/{}/1001/{room}", zoe.id);
    let mut there = zoe.knocks(&path, &[]).await.unwrap().enters().await;
    let [bob] = stack.browsers(&room, ["bob"]).await;
    let answer = online(json!([zoe.id.to_string(), 77_777])).await;
    assert_eq!(
        answer["list"],
        json!([{ "userId": zoe.id, "online": true }, { "userId": 77_777, "online": false }])
    );
    let one = gets(&stack, "/server/online", json!({ "userId": bob.person.id })).await;
    assert_eq!(one["online"], true);

    let path = format!("/server/rooms/{room}/members");
    let mut inside = [zoe.id, bob.person.id];
    inside.sort_unstable();
    eventually("both are listed", PATIENCE, async || {
        gets(&stack, &path, json!({})).await["list"] == json!(inside)
    })
    .await;
    let page = gets(&stack, &path, json!({ "limit": 1 })).await;
    assert_eq!((&page["total"], &page["hasNext"]), (&json!(2), &json!(true)));
    let rest = gets(&stack, &path, json!({ "after": inside[0].to_string() })).await;
    assert_eq!((&rest["list"], &rest["hasNext"]), (&json!([inside[1]]), &json!(false)));
    there.hears_nothing_else(&bob, &room).await;
    for (path, body) in [
        ("/server/token", json!({})),
        ("/server/token", json!({ "userId": 9999 })),
        ("/server/token", json!({ "userId": 100_001, "appId": 10_002 })),
        ("/server/token", json!({ "userId": 100_001, "avatar": "javascript:1" })),
        ("/server/online", json!({})),
        ("/server/ban", json!({ "userId": 100_001, "minutes": 5 })),
        ("/server/rooms/x/members", json!({})),
        ("/server/rooms/1/members", json!({ "limit": 0 })),
        ("/server/send", json!({ "roomId": 1, "userId": 100_001, "content": "x" })),
        ("/server/send", json!({ "userId": 100_001 })),
        ("/server/send", json!({ "userId": 100_001, "content": "x", "data": "y" })),
        ("/server/send", json!({ "userId": 100_001, "content": "x", "idempotencyKey": "a b" })),
    ] {
        let reply = asks(&stack, path, body.clone()).await;
        assert_eq!((reply.status, &reply.json()["code"]), (400, &json!(400)), "{path} {body}");
    }
    stack.stop().await;
}

#[tokio::test]
async fn the_same_calls_are_answered_over_the_bus() {
    let stack = with_key().await;
    let room = stack.room().await;
    let [mut ann] = stack.browsers(&room, ["ann"]).await;
    let mut nats = Nats::of(std::path::Path::new(&stack.data_dir())).await;
    let say = json!({ "roomId": room.0, "content": "over the bus" });
    let sent = nats.calls("qiyu.server.send", &say).await.unwrap();
    assert_eq!(ann.hears("over the bus").await.msg_id, msg_id(&sent));
    let members = nats.calls("qiyu.server.members", &json!({ "roomId": room.0 })).await.unwrap();
    assert_eq!(members["list"], json!([ann.person.id]));
    let mute = json!({ "userId": ann.person.id, "roomId": room.0, "reason": "loud" });
    nats.calls("qiyu.server.mute", &mute).await.unwrap();
    ann.is_told(5610).await;
    let nowhere = json!({ "roomId": Room(999_999).0, "content": "x" });
    assert_eq!(nats.calls("qiyu.server.send", &nowhere).await, Err("404".to_owned()));
    assert_eq!(nats.calls("qiyu.server.send", &json!([])).await, Err("400".to_owned()));
    stack.stop().await;
}

/// Every command of the page, run as it stands there.
#[tokio::test]
async fn the_commands_of_the_page_work() {
    let stack = with_key().await;
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/API.md");
    let page = std::fs::read_to_string(page).unwrap();
    let blocks: Vec<&str> =
        page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 3, "one for each way to ask");
    let script = blocks.join("").replace("127.0.0.1:8080", &stack.http());
    let home = tempfile::tempdir().unwrap();
    let run = tokio::process::Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .env("KEY", KEY)
        .current_dir(home.path())
        .output();
    let output = tokio::time::timeout(PATIENCE * 3, run).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let mut codes = serde_json::Deserializer::from_str(&said).into_iter::<Value>();
    let answers: Vec<Value> = codes.by_ref().map(|answer| answer.unwrap()).collect();
    assert_eq!(
        answers.len(),
        script.matches("curl -fsS -").count() - 1 + script.matches("\nserver ").count()
    );
    for answer in &answers {
        assert!(answer["code"].is_null() || answer["code"] == 200, "{answer}");
    }
    stack.stop().await;
}

/// The example is a program of its own, built with the tests.
#[tokio::test]
async fn a_gift_service_of_a_page_reads_the_log_and_answers() {
    let stack = with_key().await;
    let room = stack.room().await;
    let [ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let gift = format!(r#"{{"roomId":{room},"gift":"rose"}}"#);
    let body = json!({ "bizCode": 7001, "data": gift, "clientMsgId": fresh_id() });
    ann.sends(1003, body); // before the service is there
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_qiyu")).with_file_name("examples");
    let program = program.join("gifts");
    assert!(program.exists(), "{program:?} is built by `cargo build --examples`");
    let url = std::fs::read_to_string(std::path::Path::new(&stack.data_dir()).join("nats.url"));
    let service = tokio::process::Command::new(program)
        .arg(url.unwrap().trim())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let mut service = service.unwrap();
    let told = bob.is_told(7001).await;
    let told: Value = serde_json::from_str(told["data"].as_str().unwrap()).unwrap();
    assert_eq!(told, json!({ "gift": "rose", "from": ann.person.id }));
    service.kill().await.unwrap();
    stack.stop().await;
}
