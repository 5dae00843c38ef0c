//! The users of the bus (`deploy/nats/users.conf`): each may do what its role does, and no more.

use serde_json::json;
use tempfile::TempDir;

use crate::harness::{
    How, Nats, NatsServer, PATIENCE, Request, Stack, eventually, fresh_id, run_to_end, users,
};

const KEY: &str = "an-integrator's-key-0123456789";

/// Whom the file restricts.
const RESTRICTED: [&str; 8] =
    ["provision", "gateway", "fanout", "presence", "living", "api", "auditor", "integrator"];

/// Who may write what: the tables in `nats/src/stream.rs`, line by line.
const MAY_WRITE: &[(&str, &[&str])] = &[
    ("im.in.p07.10001.room.1.opened", &["living"]),
    ("im.in.p07.10001.room.1.closed", &["living"]),
    ("im.in.p07.10001.room.1.measures", &["living"]),
    ("im.in.p07.10001.room.1.msg", &["gateway", "api"]),
    ("im.in.p07.10001.room.1.members", &["gateway"]),
    ("im.in.p07.10001.room.1.likes", &["gateway"]),
    ("im.in.p07.10001.room.1.biz", &["gateway"]),
    ("im.in.p07.10001.room.1.refused", &["gateway"]),
    ("im.in.p07.10001.room.1.unacked", &["gateway", "presence"]),
    ("im.in.p07.10001.room.1.of_the_future", &[]),
    ("im.in.p07.10001.user.100001.msg", &["gateway", "api"]),
    ("im.in.p07.10001.user.100001.biz", &["gateway"]),
    ("im.in.p07.10001.user.100001.refused", &["gateway"]),
    ("im.in.p07.10001.user.100001.measures", &["living"]),
    ("im.in.p07.10001.user.sessions", &["gateway"]),
    ("im.in.p07.gateway.g1.gone", &["gateway", "presence"]),
    ("im.out.g1.1", &["fanout"]),
    ("im.ledger.g1", &["gateway"]),
    ("im.ledger.g1.resumes", &["gateway"]),
    ("im.ledger.w.handovers", &["fanout"]),
    ("im.ledger.api.reads", &["api"]),
    ("im.ledger.g1.of_the_future", &[]),
    ("im.snap.p07.1.0", &["fanout"]),
    ("im.inbox.10001.100001", &["fanout"]),
    ("im.evt.p07.10001.user.online", &["fanout"]),
    ("im.ids.room", &["living"]),
    ("im.dead.decode", &["fanout", "living"]),
    ("im.notice.g1.1", &["fanout"]),
    ("im.lag.p07", &["fanout"]),
    ("$KV.gateways.g1", &["gateway", "presence"]),
    ("$KV.incarnations.g1.1", &["gateway", "presence"]),
    ("$KV.reapers.r", &["presence"]),
    ("$KV.workers.w", &["fanout"]),
    ("$KV.claims.p07", &["fanout"]),
    ("$KV.positions.p07", &["fanout"]),
    ("$KV.positions.p07.snapshots", &["fanout"]),
    ("$KV.presence.10001.100001", &["gateway"]),
    ("$KV.tickets.t", &["gateway"]),
    ("$KV.rooms.10001.1", &["living"]),
    ("$KV.anchors.10001.100001", &["living"]),
    ("$KV.watch.10001.1", &["fanout"]),
    ("$KV.measures.10001.0.100001", &["living"]),
];

/// Who may read which stream in a row. All it takes goes together: to make a consumer, to pull
/// from it, and to ask for it, which the client does by itself once a connection is back.
const MAY_READ: &[(&str, &[&str])] = &[
    ("IM_INBOX", &["fanout", "auditor"]),
    ("IM_LEDGER", &["auditor"]),
    ("IM_SNAP", &[]),
    ("IM_EVT", &[]),
    ("IM_DEAD", &[]),
    ("KV_gateways", &["gateway", "living", "api", "auditor"]),
    ("KV_incarnations", &["gateway", "presence"]),
    ("KV_workers", &["fanout"]),
    ("KV_claims", &["fanout"]),
    ("KV_measures", &["gateway", "living", "auditor"]),
    ("KV_watch", &["living", "auditor"]),
    ("KV_presence", &["auditor"]),
    ("KV_tickets", &[]),
    ("KV_rooms", &["auditor"]),
    ("KV_anchors", &["auditor"]),
];

/// Who may ask the server to do what with a stream.
const MAY_ASK: &[(&str, &[&str])] = &[
    ("$JS.API.STREAM.CREATE.IM_IN", &["provision"]),
    ("$JS.API.STREAM.UPDATE.IM_IN", &["provision"]),
    ("$JS.API.STREAM.INFO.IM_IN", &RESTRICTED),
    (
        "$JS.API.STREAM.INFO.KV_presence",
        &["provision", "gateway", "fanout", "presence", "living", "api", "auditor"],
    ),
    ("$JS.API.STREAM.DELETE.IM_IN", &[]),
    ("$JS.API.STREAM.PURGE.IM_IN", &[]),
    ("$JS.API.STREAM.PURGE.IM_SNAP", &["fanout"]),
    ("$JS.API.STREAM.MSG.DELETE.IM_IN", &[]),
    ("$JS.API.STREAM.MSG.DELETE.IM_INBOX", &["fanout"]),
    ("$JS.API.STREAM.SNAPSHOT.IM_IN", &[]),
    ("$JS.API.STREAM.RESTORE.IM_IN", &[]),
    ("$JS.API.STREAM.LEADER.STEPDOWN.IM_IN", &[]),
    ("$JS.API.ACCOUNT.PURGE.QIYU", &[]),
    (
        "$JS.API.STREAM.MSG.GET.IM_IN",
        &["gateway", "fanout", "presence", "living", "api", "auditor"],
    ),
    ("$JS.API.STREAM.MSG.GET.IM_INBOX", &[]),
    ("$JS.API.STREAM.MSG.GET.IM_LEDGER", &[]),
    ("$JS.API.STREAM.MSG.GET.IM_SNAP", &["fanout", "auditor"]),
    ("$JS.API.STREAM.MSG.GET.KV_positions", &["gateway", "fanout", "presence", "auditor"]),
    ("$JS.API.STREAM.MSG.GET.KV_tickets", &["gateway"]),
    ("$JS.API.DIRECT.GET.IM_IN", &["gateway", "fanout", "auditor"]),
    ("$JS.API.DIRECT.GET.IM_OUT", &["auditor"]),
    ("$JS.API.DIRECT.GET.KV_presence", &[]),
    ("$JS.API.CONSUMER.CREATE.IM_IN", &["gateway", "fanout", "living", "api", "auditor"]),
    ("$JS.API.CONSUMER.CREATE.IM_IN.lasting", &[]),
    ("$JS.API.CONSUMER.DURABLE.CREATE.IM_IN.lasting", &[]),
    ("$JS.API.CONSUMER.CREATE.IM_OUT.gw-g1-1.im.out.g1.1", &["gateway", "presence"]),
    ("$JS.API.CONSUMER.CREATE.IM_OUT.everything", &[]),
    ("$JS.API.CONSUMER.INFO.IM_OUT.gw-g1-1", &["gateway", "presence"]),
    ("$JS.API.CONSUMER.MSG.NEXT.IM_OUT.gw-g1-1", &["gateway", "presence"]),
    ("$JS.API.CONSUMER.DELETE.IM_OUT.gw-g1-1", &["gateway", "presence"]),
    ("$JS.API.CONSUMER.DELETE.IM_IN.c", &["gateway", "fanout", "living", "api"]),
    ("$JS.API.CONSUMER.DELETE.IM_LEDGER.c", &[]),
    ("$JS.ACK.IM_OUT.gw-g1-1.1.1.1.1.0", &["gateway", "presence"]),
    ("$JS.API.CONSUMER.CREATE.IM_IN.gifts.im.in.*.*.room.*.biz", &["integrator"]),
    ("$JS.API.CONSUMER.CREATE.IM_IN.gifts.im.in.*.*.room.*.msg", &[]),
    ("$JS.API.CONSUMER.CREATE.IM_IN.gifts.im.in.>", &[]),
    (
        "$JS.API.CONSUMER.INFO.IM_IN.gifts",
        &["gateway", "fanout", "living", "api", "auditor", "integrator"],
    ),
    (
        "$JS.API.CONSUMER.MSG.NEXT.IM_IN.gifts",
        &["gateway", "fanout", "living", "api", "auditor", "integrator"],
    ),
    ("$JS.ACK.IM_IN.gifts.1.1.1.1.0", &["integrator"]),
];

/// Who may command whom, and whom one may answer.
const MAY_COMMAND: &[(&str, &[&str])] = &[
    ("qiyu.server.send", &["integrator"]),
    ("qiyu.living.open", &["api"]),
    ("qiyu.living.close", &["api"]),
    ("qiyu.living.moderate", &["api"]),
    ("qiyu.living.close_abandoned", &["fanout"]),
    ("qiyu.fold.p07.find_sent", &["gateway", "api"]),
    ("qiyu.fold.p07.list_waiting", &["api"]),
    ("qiyu.fold.p07.list_members", &["api", "auditor"]),
    ("qiyu.fold.p07.survey", &["auditor"]),
    ("qiyu.gateway.g1.1.end_room", &["living"]),
    ("qiyu.gateway.g1.1.replace", &["gateway"]),
    ("qiyu.vitals", &[]),
    ("_INBOX.admin.x", &["gateway", "fanout", "presence", "living", "api", "auditor"]),
    ("_INBOX.gateway.x", &["gateway", "fanout"]),
    ("_INBOX.fanout.x", &["living"]),
    ("_INBOX.living.x", &["gateway", "living"]),
    ("_INBOX.api.x", &["fanout", "living"]),
    ("_INBOX.auditor.x", &["fanout"]),
    ("_INBOX.presence.x", &[]),
    ("_INBOX.provision.x", &[]),
    ("_INBOX.integrator.x", &["api"]),
];

/// Who may listen to what.
const MAY_HEAR: &[(&str, &[&str])] = &[
    (">", &[]),
    ("im.in.>", &[]),
    ("im.out.>", &[]),
    ("$KV.>", &[]),
    ("$JS.API.>", &[]),
    ("_INBOX.>", &[]),
    ("_INBOX.provision.x", &["provision"]),
    ("_INBOX.gateway.x", &["gateway"]),
    ("_INBOX.fanout.x", &["fanout"]),
    ("_INBOX.presence.x", &["presence"]),
    ("_INBOX.living.x", &["living"]),
    ("_INBOX.api.x", &["api"]),
    ("_INBOX.auditor.x", &["auditor"]),
    ("_INBOX.integrator.x", &["integrator"]),
    ("qiyu.server.send", &["api"]),
    ("qiyu.living.open", &["living"]),
    ("qiyu.fold.p07.find_sent", &["fanout"]),
    ("qiyu.gateway.g1.1.end_room", &["gateway"]),
    ("qiyu.vitals", &["gateway", "fanout", "presence", "living", "api", "auditor"]),
    ("im.notice.g1.1", &["gateway"]),
    ("im.lag.*", &["gateway", "api"]),
];

#[tokio::test]
async fn each_user_may_do_what_its_role_does_and_no_more() {
    let home = TempDir::new().unwrap();
    let mut server = NatsServer::deployed(home.path(), "server.conf", &users::passwords()).await;
    let url = server.url();
    let mut wrong = Vec::new();
    for user in RESTRICTED {
        let mut nats = Nats::at(&users::url(&url, user)).await;
        for (subject, allowed) in [MAY_WRITE, MAY_ASK, MAY_COMMAND].concat() {
            if nats.may_publish(subject).await != allowed.contains(&user) {
                wrong.push(format!("{user} publishes {subject}"));
            }
        }
        for (stream, allowed) in MAY_READ {
            for verb in ["CREATE", "MSG.NEXT", "INFO"] {
                let consumer = if verb == "CREATE" { "" } else { ".c" };
                let subject = format!("$JS.API.CONSUMER.{verb}.{stream}{consumer}");
                if nats.may_publish(&subject).await != allowed.contains(&user) {
                    wrong.push(format!("{user} publishes {subject}"));
                }
            }
        }
        for (subject, allowed) in MAY_HEAR {
            if nats.may_listen(subject).await != allowed.contains(&user) {
                wrong.push(format!("{user} listens to {subject}"));
            }
        }
    }
    assert!(wrong.is_empty(), "not as the tables say: {wrong:#?}");
    let mut admin = Nats::at(&users::url(&url, "admin")).await;
    assert!(admin.may_publish("im.in.p07.10001.room.1.closed").await);
    assert!(admin.may_listen(">").await, "people may look at everything");
    server.process().stops().await;
}

#[tokio::test]
async fn with_a_user_for_each_role_everything_works_and_nothing_is_refused() {
    let roles = ["gateway", "gateway", "fanout", "presence", "living", "api", "verify"];
    let mut stack = Stack::as_users(&roles, &[("QIYU_API_KEY", KEY)]).await;
    let (g1, g2) = (stack.gateway(1), stack.gateway(2));
    let anchor = stack.anchor("anchor").await;
    let room = anchor.opens_room().await;
    assert_eq!(anchor.opens_room().await, room, "it is found again");

    // Across gateways, both ways; 1:1, to somebody here and to somebody away.
    let ann = stack.person("ann").await.via(&g1);
    let (bob, cid) = (stack.person("bob").await.via(&g2), stack.person("cid").await);
    let mut laptop = ann.ws_into(&room).await;
    let mut phone = bob.tcp_into(&room).await;
    let first = laptop.says_with_id(&room, "hello", "once").await;
    assert_eq!(laptop.says_with_id(&room, "hello", "once").await, first, "said once");
    phone.hears("hello").await;
    phone.says_surely(&room, "hello yourself").await;
    laptop.hears("hello yourself").await;
    laptop.whispers_surely(&bob, "psst").await;
    phone.hears("psst").await;
    laptop.whispers_surely(&cid, "when you are back").await;
    assert!(ann.sees_online(&bob).await);
    eventually("two are counted", PATIENCE, async || ann.counts(&room).await == 2).await;
    let waiting =
        async || cid.gets("/im/offline/pull", &[]).await["list"].as_array().unwrap().len();
    eventually("it waits for cid", PATIENCE, async || waiting().await == 1).await;
    cid.via(&g2).ws().await.hears("when you are back").await;

    // Missed and read again: from the log by the gateway, and over HTTP.
    let last = laptop.entered_at();
    laptop.drops_without_goodbye();
    phone.says_surely(&room, "are you there?").await;
    let mut laptop = ann.ws_back_into(&room, last).await;
    laptop.hears_until("are you there?").await;
    let history = ann.gets("/im/history", &[("roomId", &room.to_string())]).await;
    assert_eq!(history["list"].as_array().unwrap().len(), 3, "{history}");

    // A server speaks, over HTTP and, as the gift service, over the bus; the anchor mutes.
    let mut call = Request::post("/server/send", &[], How::Json)
        .header("authorization", &format!("Bearer {KEY}"));
    call.body = json!({ "roomId": room.0, "content": "from the server" }).to_string().into();
    assert_eq!(stack.sends(call).await.status, 200);
    phone.hears("from the server").await;
    let gift = format!(r#"{{"roomId":{room},"gift":"rose"}}"#);
    laptop.sends(1003, json!({ "bizCode": 7001, "data": gift, "clientMsgId": fresh_id() }));
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_qiyu")).with_file_name("examples");
    let mut service = tokio::process::Command::new(program.join("gifts"))
        .arg(stack.url_of("integrator"))
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("`cargo build --examples` has built it");
    phone.is_told(7001).await;
    service.kill().await.unwrap();
    let muted = [("roomId", room.to_string()), ("userId", bob.id.to_string())];
    let muted = muted.each_ref().map(|(key, value)| (*key, value.as_str()));
    anchor.gets("/living/mute", &muted).await;
    phone.is_told(5610).await;

    // Who is at work, as people with the tool see it: everybody answers.
    let admin = stack.url_of("admin");
    let shown = run_to_end(&["top", "--once", "--nats-url", &admin], &[]).await;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    for role in roles {
        assert!(shown.split_whitespace().any(|word| word == role), "no {role} in {shown}");
    }

    // A gateway dies; another one ends in good order.
    stack.kills_gateway(2).await;
    eventually("bob is offline", PATIENCE * 2, async || !ann.sees_online(&bob).await).await;
    let mut phone = bob.via(&g1).tcp_into(&room).await;
    anchor.closes(&room).await;
    laptop.is_told(5600).await;
    phone.is_told(5600).await;
    stack.drains_gateway(1).await;

    let refused: Vec<String> = stack
        .nats_log()
        .lines()
        .filter(|line| line.contains("Violation"))
        .map(str::to_owned)
        .collect();
    assert!(refused.is_empty(), "refused by {} lines: {refused:#?}", refused.len());
    stack.stop().await;
}
