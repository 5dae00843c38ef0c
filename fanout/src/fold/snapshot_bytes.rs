//! Golden test: a snapshot keeps its bytes from build to build, and stays readable.
//!
//! Every map of these folds has at most one entry, because a map with more is
//! encoded in a random order.

use qiyu_schema::{
    codec,
    event::{Event, UnackedMessage},
    sanction::SanctionKind,
};

use super::{
    Fold,
    partition::{Partition, app, gateway, joined, online, room, sender, user},
};

/// One line per fold: its name and its encoding in hexadecimal.
const GOLDEN: &str = include_str!("../../fixtures/snapshots.txt");

fn opened(anchor: u64) -> Event {
    let (name, cover) = (String::new(), String::new());
    Event::RoomOpened { app: app(), room: room(), anchor: user(anchor), room_type: 1, name, cover }
}

fn named_message(from_server: bool) -> Event {
    let mut sender = sender(1);
    sender.client_msg_id = Some("c-1".parse().unwrap());
    if from_server {
        sender.user = None;
    }
    Event::RoomMessageSent { app: app(), room: room(), sender, biz_code: 5555, data: "{}".into() }
}

/// An open room with a member, likes, sanctions, a named message and an unread direct message.
fn open_room() -> Fold {
    let mut log = Partition::default();
    let a = gateway("a", 1);
    log.folds(opened(9));
    log.moves(&a, &[joined(1, 1)]);
    log.session(&a, online(1, 1));
    log.folds(named_message(false));
    log.writes(1);
    log.folds(Event::RoomLiked { app: app(), room: room(), gateway: a, count: 3 });
    for (room, until_ms) in [(Some(room()), None), (None, Some(99_000))] {
        let (app, user, sanction, by) = (app(), user(1), SanctionKind::Mute, Some(user(9)));
        let reason = "loud".into();
        log.folds(Event::SanctionImposed { app, room, user, sanction, until_ms, reason, by });
    }
    log.fold
}

/// A closed room, and a named message of the server API.
fn closed_room() -> Fold {
    let mut log = Partition::default();
    log.folds(opened(9));
    log.folds(named_message(true));
    let (app, room) = (app(), room());
    log.folds(Event::RoomClosed { app, room, by: None, peak: None, good_num: None });
    log.fold
}

/// A room whose only gateway has died, with a message kept for its only member, the anchor.
fn dead_gateway() -> Fold {
    let mut log = Partition::default();
    let a = gateway("a", 1);
    log.folds(opened(1));
    log.moves(&a, &[joined(1, 1)]);
    log.says(9);
    let msg_id = log.here();
    log.folds(Event::GatewayGone { gateway: a.clone() });
    let messages = vec![UnackedMessage { msg_id, users: None, sends: 1 }];
    let (app, room) = (app(), room());
    log.folds(Event::Unacknowledged { app, room, gateway: a, messages, keep: true });
    log.writes(1);
    log.fold
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16).unwrap()).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect()
}

#[test]
fn a_snapshot_has_the_bytes_it_always_had() {
    let folds = [
        ("open_room", open_room()),
        ("closed_room", closed_room()),
        ("dead_gateway", dead_gateway()),
    ];
    let encode =
        |(name, fold): &(&str, Fold)| format!("{name} {}\n", hex(&codec::encode(fold).unwrap()));
    let encoded: String = folds.iter().map(encode).collect();
    assert_eq!(encoded, GOLDEN);
    for ((name, mut fold), line) in folds.into_iter().zip(GOLDEN.lines()) {
        let bytes = unhex(line.split_once(' ').unwrap().1);
        fold.take_stirred(); // not part of a snapshot
        assert_eq!(codec::decode::<Fold>(&bytes).unwrap(), fold, "{name}");
    }
}
