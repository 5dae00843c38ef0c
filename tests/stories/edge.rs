//! The HTTP edge: who one is, how one asks, and what never shows (`docs/PROTOCOL.md` §7).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{How, PATIENCE, Reply, Request, Room, Stack, eventually};

fn keys(value: &Value) -> BTreeSet<&str> {
    let object = value.as_object().unwrap_or_else(|| panic!("not an object: {value}"));
    object.keys().map(String::as_str).collect()
}

#[tokio::test]
async fn whoever_logs_in_is_known_by_a_cookie_or_as_a_bearer() {
    let stack = Stack::start().await;
    let reply = stack.stranger().posts("/user/login", &[], How::Form).await;
    let cookie = reply.header("set-cookie").expect("a cookie").to_lowercase();
    for part in ["qytk=", "httponly", "samesite=lax"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let guest = reply.answer().success();
    assert!(guest["userId"].as_u64().is_some_and(|id| 10_000 <= id), "{guest}");
    assert!(guest["nickName"].as_str().is_some_and(|name| !name.is_empty()), "{guest}");
    assert_eq!(keys(&guest), BTreeSet::from(["userId", "nickName", "avatar"]));

    for (person, vip) in [(stack.person("ann").await, false), (stack.anchor("vip").await, true)] {
        let page = json!({
            "loginStatus": true, "userId": person.id, "nickName": person.name,
            "avatar": person.avatar, "showStartLivingBtn": vip,
        });
        assert_eq!(person.gets("/home/initPage", &[]).await, page);
        let bearer = format!("Bearer {}", person.bearer());
        let request = Request::post("/home/initPage", &[], How::Form);
        let reply = stack.sends(request.header("authorization", &bearer)).await;
        assert_eq!(reply.answer().success(), page);
    }
    let anonymous = stack.stranger().gets("/home/initPage", &[]).await;
    assert_eq!(anonymous["loginStatus"], false);
    assert_ne!(anonymous["showStartLivingBtn"], true);
    stack.stop().await;
}

#[tokio::test]
async fn nobody_logs_in_where_logins_are_made_elsewhere() {
    let stack = Stack::with(&[("QIYU_DEV_LOGIN", "false")]).await;
    let reply = stack.stranger().posts("/user/login", &[("nickName", "ann")], How::Json).await;
    assert_eq!(reply.header("set-cookie"), None);
    assert_eq!(reply.answer().code, 403);
    stack.stop().await;
}

#[tokio::test]
async fn parameters_travel_as_query_form_or_json() {
    let stack = Stack::start().await;
    for how in [How::Query, How::Form, How::Json] {
        let name = "安妮 & co = 100%+";
        let params = [("nickName", name), ("vip", "true"), ("avatar", "https://a.example/?b=c&d")];
        let reply = stack.stranger().posts("/user/login", &params, how).await;
        assert_eq!(reply.answer().success()["nickName"], name, "{how:?}");

        let anchor = stack.anchor("anchor").await;
        let params = [("type", "2"), ("roomName", name), ("covertImg", "https://c.example/1.png")];
        let started = anchor.posts("/living/startingLiving", &params, how).await.answer().success();
        let room = Room(started["roomId"].as_u64().expect("a roomId"));
        assert_eq!(anchor.looks_at(&room).await["roomName"], name, "{how:?}");

        let id = room.to_string();
        let config = anchor.posts("/living/anchorConfig", &[("roomId", &id)], how).await;
        assert_eq!(config.answer().success()["roomId"], room.0, "{how:?}");
        let params = [("type", "2"), ("page", "1"), ("pageSize", "1")];
        let listed = anchor.posts("/living/list", &params, how).await.answer().success();
        assert!(listed["list"].is_array(), "{how:?}");
        let params = [("userId", &*anchor.id.to_string())];
        let online = anchor.posts("/im/isOnline", &params, how).await.answer().success();
        assert_eq!(online, false, "{how:?}");
        anchor.posts("/living/closeLiving", &[("roomId", &id)], how).await.answer().success();
    }
    stack.stop().await;
}

#[tokio::test]
async fn a_ticket_names_a_gateway_and_a_person() {
    let stack = Stack::start().await;
    let ann = stack.person("ann").await;
    let ticket = ann.gets("/im/getImConfig", &[]).await;
    let expected = ["token", "userId", "expiresIn", "wsImServerAddress", "tcpImServerAddress"];
    assert_eq!(keys(&ticket), BTreeSet::from(expected));
    assert_eq!((&ticket["userId"], &ticket["expiresIn"]), (&json!(ann.id), &json!(300)));
    let token = ticket["token"].as_str().expect("a string");
    assert!(token.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)));
    assert_ne!(token, ann.token().await, "each is another one");
    ann.ws().await.logout().await;
    ann.tcp().await.logout().await;
    stack.stop().await;
}

#[tokio::test]
async fn without_a_gateway_there_is_nowhere_to_go() {
    let stack = Stack::roles(&["fanout,presence,living,api"], &[]).await;
    let ann = stack.anchor("ann").await;
    let answer = ann.asks("/im/getImConfig", &[]).await;
    assert_eq!((answer.code, answer.data), (501, Value::Null));
    let room = ann.opens_room().await;
    assert_eq!(ann.looks_at(&room).await["roomId"], room.0);
    stack.stop().await;
}

#[tokio::test]
async fn who_one_is_cannot_be_claimed_in_a_header() {
    let stack = Stack::start().await;
    let (anchor, ann) = (stack.anchor("anchor").await, stack.person("ann").await);
    let claims = |request: Request| {
        let id = anchor.id.to_string();
        request
            .header("qiyu_gh_user_id", &id)
            .header("qiyu-gh-user-id", &id)
            .header("x-user-id", &id)
    };
    let page = stack.sends(claims(Request::post("/home/initPage", &[], How::Form))).await;
    assert_eq!(page.answer().success()["loginStatus"], false);
    let start = claims(Request::post("/living/startingLiving", &[("type", "1")], How::Form));
    assert_eq!(stack.sends(start).await.answer().code, 401);
    let cookie = format!("qytk={}", ann.bearer());
    let page = claims(Request::post("/home/initPage", &[], How::Form)).header("cookie", &cookie);
    assert_eq!(stack.sends(page).await.answer().success()["userId"], ann.id);

    let mut forged: Vec<_> = ann.bearer().split('.').collect();
    let (anchors, unsigned) = (anchor.bearer().to_owned(), "eyJhbGciOiJub25lIn0");
    forged[1] = anchors.split('.').nth(1).expect("a JWT has three parts");
    let nameless = format!("{unsigned}.{}.", forged[1]);
    for token in [forged.join("."), nameless, "oops".to_owned(), "..".to_owned()] {
        let page = Request::post("/home/initPage", &[], How::Form);
        let page = page.header("cookie", &format!("qytk={token}"));
        assert_eq!(stack.sends(page).await.answer().success()["loginStatus"], false, "{token}");
    }
    stack.stop().await;
}

/// Nothing of the inside may show in an answer.
fn shows_nothing_inside(reply: &Reply) {
    let text = reply.text();
    for word in ["panic", "src/", ".rs", "sqlx", "SELECT", "nats", "JetStream", "backtrace"] {
        assert!(!text.contains(word), "{word} in {} {text}", reply.status);
    }
    assert!(reply.status < 500, "{} {text}", reply.status);
}

#[tokio::test]
async fn nonsense_is_answered_without_showing_the_inside() {
    let stack = Stack::start().await;
    let anchor = stack.anchor("anchor").await;
    let long = "9".repeat(400);
    let cookie = format!("qytk={}", anchor.bearer());
    for route in [
        "/user/login",
        "/home/initPage",
        "/living/startingLiving",
        "/living/closeLiving",
        "/living/anchorConfig",
        "/living/list",
        "/im/getImConfig",
        "/im/isOnline",
    ] {
        for how in [How::Query, How::Form, How::Json] {
            for nonsense in
                [long.as_str(), "' OR 1=1 --", "\0", "-9223372036854775809", "1e400", "null"]
            {
                let keys = ["type", "page", "pageSize", "roomId", "userId", "vip"];
                let reply = anchor.posts(route, &keys.map(|key| (key, nonsense)), how).await;
                shows_nothing_inside(&reply);
                let code = reply.answer().code;
                assert!([200, 400, 501].contains(&code), "{route} {how:?} {nonsense}: {code}");
            }
        }
        for (kind, body) in [
            ("application/json", &b"{"[..]),
            ("application/json", b"[[[[]]]]"),
            ("application/json", b"\xff"),
            ("application/x-www-form-urlencoded", b"%zz=%ff&&&==\xff"),
            ("multipart/form-data; boundary=x", b"--x"),
            ("nonsense", b"\0"),
        ] {
            let mut request = Request::post(route, &[], How::Query);
            request.body = body.to_vec();
            let request = request.header("content-type", kind).header("cookie", &cookie);
            shows_nothing_inside(&stack.sends(request).await);
        }
    }
    for path in ["/nowhere", "/living/", "/user/login/../../etc/passwd", "/%00", "/?x=%ff"] {
        shows_nothing_inside(&stack.get(path).await);
    }
    eventually("it still works", PATIENCE, async || {
        anchor.asks("/home/initPage", &[]).await.code == 200
    })
    .await;
    stack.stop().await;
}

#[tokio::test]
async fn pages_of_named_sites_may_call_and_nobody_elses() {
    const PAGE: &str = "https://live.example";
    let stack =
        Stack::with(&[("QIYU_ORIGINS", "https://live.example,http://localhost:3000")]).await;
    let ann = stack.person("ann").await;
    let asks_from = async |origin: &str| {
        let cookie = format!("qytk={}", ann.bearer());
        let request = Request::post("/home/initPage", &[], How::Form).header("cookie", &cookie);
        let request = request.header("origin", origin).header("sec-fetch-site", "cross-site");
        stack.sends(request).await
    };
    let preflight = async |stack: &Stack, origin: &str| {
        let request = Request { method: "OPTIONS", ..Request::get("/living/list") };
        let request = request.header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        stack.sends(request.header("access-control-request-headers", "content-type")).await
    };
    for origin in [PAGE, "http://localhost:3000"] {
        for reply in [preflight(&stack, origin).await, asks_from(origin).await] {
            assert_eq!(reply.status, 200);
            assert_eq!(reply.header("access-control-allow-origin"), Some(origin));
            assert_eq!(reply.header("access-control-allow-credentials"), Some("true"));
        }
        assert_eq!(asks_from(origin).await.answer().success()["userId"], ann.id);
    }
    // What is refused may be read, too.
    let refused = stack.sends(Request::get("/nowhere").header("origin", PAGE)).await;
    assert_eq!(refused.header("access-control-allow-origin"), Some(PAGE));
    for origin in ["https://evil.example", "https://live.example.evil.example", "null"] {
        let reply = asks_from(origin).await;
        assert_eq!(reply.header("access-control-allow-origin"), None, "{origin}");
        assert_eq!(reply.answer().code, 403, "{origin}");
        let reply = preflight(&stack, origin).await;
        assert_eq!(reply.header("access-control-allow-origin"), None, "{origin}");
    }
    stack.stop().await;

    // Everybody means: with a bearer token, never with the visitor's cookie.
    let stack = Stack::with(&[("QIYU_ORIGINS", "*")]).await;
    let reply = preflight(&stack, "https://any.example").await;
    assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    assert_eq!(reply.header("access-control-allow-credentials"), None);
    stack.stop().await;
}
