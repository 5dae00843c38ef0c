//! The user who only reads (`deploy/nats/users.conf`): the role `verify`, and the commands about
//! the record, under it.

use std::path::Path;
use std::process::Output;

use serde_json::json;
use tempfile::TempDir;

use crate::harness::{APP, Nats, PATIENCE, Stack, eventually, packed, run_to_end};

const ROLES: &[&str] = &["fanout", "presence", "living", "api", "gateway", "verify"];

/// A database that processes of one machine can share.
fn tables_in(home: &Path) -> String {
    format!("sqlite://{}?mode=rwc", home.join("tables.db").display())
}

/// What the role has found so far: verifications, differences, projections it could not check.
async fn findings(stack: &Stack) -> [f64; 3] {
    let runs = stack.metric("qiyu_verify_runs_total").await;
    if runs < 1.0 {
        return [runs, 0.0, 0.0];
    }
    let [differences, unchecked] = ["qiyu_verify_differences", "qiyu_verify_unchecked"];
    [runs, stack.metric(differences).await, stack.metric(unchecked).await]
}

fn said(output: &Output) -> String {
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{said}{complained}")
}

#[tokio::test]
async fn an_auditor_may_look_at_everything_and_is_refused_nothing_it_needs() {
    let home = TempDir::new().unwrap();
    let tables = tables_in(home.path());
    let settings = [("QIYU_DATABASE_URL", tables.as_str()), ("QIYU_VERIFY_EVERY", "2s")];
    let stack = Stack::as_users(ROLES, &settings).await;
    assert_eq!(stack.niceness_of("verify"), 19, "whoever serves people goes first");

    // A room that is over, one where people talk, somebody who left it, somebody who is away.
    let zoe = stack.anchor("zoe").await;
    let over = zoe.opens_room().await;
    zoe.closes(&over).await;
    let room = stack.room().await;
    let [mut ann, mut bob, dan] = stack.browsers(&room, ["ann", "bob", "dan"]).await;
    let (dans, bobs) = (dan.person.id.to_string(), bob.person.id.to_string());
    dan.logout().await;
    let said_at = ann.says_surely(&room, "tea?").await;
    bob.hears("tea?").await;
    ann.whispers_surely(&stack.person("cid").await, "psst").await;
    stack.owes_nothing().await;

    eventually("the role finds everything as the log says", PATIENCE * 6, async || {
        let [runs, differences, unchecked] = findings(&stack).await;
        1.0 <= runs && differences == 0.0 && unchecked == 0.0
    })
    .await;

    let auditor = stack.url_of("auditor");
    let as_auditor = [("QIYU_NATS_URL", auditor.as_str()), settings[0]];
    let (msg_id, room_id) = (said_at.to_string(), room.to_string());
    let capsule = home.path().join("tea.capsule").display().to_string();
    for (command, told) in [
        (&["verify"][..], "table        1 compared, as the log says"),
        (&["verify", "--room", &room_id], "membership   1 compared, as the log says"),
        (&["trace", &msg_id], "acknowledged"),
        (&["trace", &msg_id, "--user", &bobs], "Yes: "),
        (&["trace", &msg_id, "--user", &dans], "they had left it"),
        (&["replay", "--room", &room_id], "tea?"),
        (&["replay", "--user", &bobs], "online"),
        (&["replay", "--room", &room_id, "--state", "--at", &msg_id], "watching  2"),
        (&["replay", "--room", &room_id, "--save", &capsule], "capsule of room"),
    ] {
        let output = run_to_end(command, &as_auditor).await;
        assert!(output.status.success(), "{command:?}: {}", said(&output));
        assert!(said(&output).contains(told), "no {told:?} in {command:?}: {}", said(&output));
    }

    // What it compares is what there is.
    let mut admin = Nats::open(&stack.url_of("admin")).await;
    let renamed = json!({ "anchor": 1, "room_type": 1, "name": "renamed", "cover": "",
        "opened": 257, "opened_at_ms": 0 });
    let answer = admin.commands(&format!("$KV.rooms.{APP}.{room}"), &packed(&renamed)).await;
    assert!(String::from_utf8_lossy(&answer).contains("\"seq\""), "the bucket took it");
    eventually("the role finds what was changed by hand", PATIENCE * 6, async || {
        1.0 <= findings(&stack).await[1]
    })
    .await;
    let output = run_to_end(&["verify"], &as_auditor).await;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));

    let log = stack.nats_log();
    let refused: Vec<&str> = log.lines().filter(|line| line.contains("Violation")).collect();
    assert!(refused.is_empty(), "refused by {} lines: {refused:#?}", refused.len());
    drop((ann, bob));
    stack.stop().await;
}
