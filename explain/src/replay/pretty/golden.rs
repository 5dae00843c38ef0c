//! Tests that every kind of line looks as in `golden.txt` beside this file.

#![allow(clippy::unwrap_used)]

use std::num::NonZeroU64;

use qiyu_nats::log::LogEntry;
use qiyu_schema::{
    AppId, ConnId, Incarnation, MsgId, RoomId, UserId, codec,
    event::{
        DisconnectReason, Event, MemberChange, Record, Sender, SessionChange, UnackedMessage,
        VERSION,
    },
    sanction::SanctionKind,
};
use serde_json::json;

use super::*;
use crate::log::event_view::for_each_view;

/// 2025-11-25T12:00:00.500Z.
const NOON_MS: u64 = 1_764_072_000_500;
/// A number as an installation with ids of its own gives them.
const LONG: u64 = 285_608_972_927_369_217;

fn app() -> AppId {
    "10001".parse().unwrap()
}

fn room() -> RoomId {
    "7".parse().unwrap()
}

fn user(id: u64) -> UserId {
    UserId::try_from(id).unwrap()
}

fn line(number: u64) -> ConnId {
    ConnId(NonZeroU64::new(number).unwrap())
}

fn gateway() -> Incarnation {
    Incarnation { id: "g1".parse().unwrap(), epoch: 1_764_071_000_000 }
}

/// A gateway as Kubernetes names it.
fn pod() -> Incarnation {
    Incarnation { id: "gateway-7d9c5b6f4-x2x9z".parse().unwrap(), ..gateway() }
}

fn sender(id: Option<u64>) -> Sender {
    let gateway = id.map(|_| gateway());
    let connection = id.map(|_| line(1));
    Sender { user: id.map(user), gateway, connection, client_msg_id: None }
}

fn said(id: u64, name: &str, content: &str) -> Event {
    let data = json!({ "content": content, "senderName": name }).to_string();
    let (app, room, sender) = (app(), room(), sender(Some(id)));
    Event::RoomMessageSent { app, room, sender, biz_code: 5555, data }
}

fn measure(id: u64, sanction: SanctionKind, until_ms: Option<u64>, everywhere: bool) -> Event {
    let room = (!everywhere).then(room);
    let by = (!everywhere).then(|| user(100_001));
    let reason = if everywhere { String::new() } else { "刷屏 and shouting".to_owned() };
    Event::SanctionImposed { app: app(), room, user: user(id), sanction, until_ms, reason, by }
}

fn lifted(id: u64, sanction: SanctionKind, by: Option<u64>) -> Event {
    let room = by.map(|_| room());
    Event::SanctionLifted { app: app(), room, user: user(id), sanction, by: by.map(user) }
}

/// One event of each kind, by users with names of all widths and without any.
fn events() -> Vec<Event> {
    let (app, room) = (app(), room());
    let joined = |number, id, resumed| MemberChange::Joined {
        connection: line(number),
        user: user(id),
        resumed,
    };
    let left = |number, id| MemberChange::Left {
        connection: line(number),
        user: user(id),
        last_seen: Some(MsgId::at(3)),
    };
    let members = |gateway, changes| Event::MembersChanged { app, room, gateway, changes };
    let opened = |room_type, name: &str| {
        let (name, cover) = (name.to_owned(), String::new());
        Event::RoomOpened { app, room, anchor: user(100_001), room_type, name, cover }
    };
    let refused = |id, content: &str| {
        let (content, reason) = (content.to_owned(), "word: 赌场".to_owned());
        let (sender, to) = (sender(Some(id)), None);
        let room = Some(room);
        Event::ContentRefused { app, room, to, sender, biz_code: 5555, content, reason }
    };
    let wide = "旗鱼直播间开播了，欢迎大家来喝茶聊天，今晚有好茶，还有很多很多很多很多好听的歌";
    vec![
        opened(1, "安妮的茶馆"),
        members(gateway(), vec![joined(1, 100_001, false), joined(2, 100_002, false)]),
        members(pod(), vec![joined(12, LONG, true), joined(13, 100_004, false)]),
        said(100_001, "安妮", wide),
        said(
            100_002,
            "bob",
            "\u{1b}[2J\u{1b}]0;owned\u{7} look\u{202e}! 👩\u{200d}👧 e\u{301} ｆｕｌｌ",
        ),
        said(100_002, "bob", &"❤\u{fe0f}".repeat(30)),
        said(LONG, "小红帽先生和大灰狼", "a name that is too wide for its column, 名字太长了"),
        said(100_004, "", &"unbroken".repeat(20)),
        Event::RoomMessageSent {
            app,
            room,
            sender: sender(None),
            biz_code: 5601,
            data: r#"{"content":"from a server"}"#.to_owned(),
        },
        Event::DirectMessageSent {
            app,
            to: user(LONG),
            sender: sender(Some(100_002)),
            biz_code: 5555,
            data: r#"{"content":"between us 两个人"}"#.to_owned(),
        },
        Event::BusinessSent {
            app,
            room: Some(room),
            to: None,
            sender: sender(Some(100_002)),
            biz_code: 7001,
            data: r#"{"gift":"旗鱼","count":3}"#.to_owned(),
        },
        refused(100_002, "澳门赌场上线了，澳门赌场上线了，澳门赌场上线了，澳门赌场上线了"),
        Event::RoomLiked { app, room, gateway: gateway(), count: 1 },
        Event::RoomLiked { app, room, gateway: gateway(), count: 1_000_000 },
        measure(100_002, SanctionKind::Mute, Some(NOON_MS + 60_000), false),
        measure(LONG, SanctionKind::Mute, None, true),
        measure(100_004, SanctionKind::Kick, None, false),
        measure(100_004, SanctionKind::Ban, None, false),
        measure(100_004, SanctionKind::Unknown, None, false),
        lifted(100_002, SanctionKind::Mute, Some(100_001)),
        lifted(100_004, SanctionKind::Ban, None),
        Event::SessionsChanged {
            app,
            gateway: pod(),
            changes: vec![
                SessionChange::Online {
                    connection: line(13),
                    user: user(100_004),
                    room: Some(room),
                },
                SessionChange::Read { user: user(LONG), msg_ids: (1..12).map(MsgId::at).collect() },
                SessionChange::Offline {
                    connection: line(13),
                    user: user(100_004),
                    reason: DisconnectReason::Idle,
                },
                SessionChange::Unknown,
            ],
        },
        Event::Unacknowledged {
            app,
            room,
            gateway: pod(),
            messages: vec![
                UnackedMessage {
                    msg_id: MsgId::at(4),
                    users: Some(vec![user(LONG), user(100_004), user(100_002)]),
                    sends: 2,
                },
                UnackedMessage { msg_id: MsgId::at(5), users: None, sends: 1 },
            ],
            keep: true,
        },
        members(gateway(), vec![left(2, 100_002), left(1, 100_001)]),
        members(gateway(), vec![MemberChange::Unknown]),
        Event::Unknown,
        Event::GatewayGone { gateway: pod() },
        opened(2, ""),
        Event::RoomClosed { app, room, by: Some(user(100_001)), peak: Some(3), good_num: Some(1) },
        Event::RoomClosed { app, room, by: None, peak: None, good_num: None },
    ]
}

/// All of it, and bytes that say nothing, an hour and a half apart so that days change.
fn laid_out(columns: usize, color: ColorMode, rooms: RoomColumn) -> String {
    let (mut layout, mut names) = (Layout::new(columns, color, rooms), DisplayNames::default());
    let encoded = events()
        .into_iter()
        .map(|event| codec::encode(&Record { v: VERSION, at_ms: NOON_MS, event }).unwrap());
    let entries: Vec<LogEntry> = encoded
        .chain([b"no event"[..].to_owned().into()])
        .zip(1..)
        .map(|(payload, seq)| {
            let subject = "im.in.p06.10001.room.7.some.thing".to_owned();
            let written_ms = NOON_MS + seq * (DAY_MS / 16 + 1_001);
            LogEntry { seq: seq * 1_000_003, subject, payload, pending: 0, written_ms }
        })
        .collect();
    let mut out = String::new();
    for entry in &entries {
        let record = entry.record().ok();
        for_each_view(entry, record.as_ref(), |view| {
            names.learn_of(&view);
            layout.write(&mut out, &view, &names);
        });
    }
    out
}

/// Removes the color sequences from `text`.
fn uncoloured(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |shown, part| shown + part.split_once('m').unwrap().1)
}

#[test]
fn every_kind_of_line_is_laid_out_as_it_always_was() {
    let shown = laid_out(80, ColorMode::Off, RoomColumn::Hidden);
    assert_eq!(shown, include_str!("golden.txt"), "it is now:\n{shown}");
}

#[test]
fn no_line_is_wider_than_the_terminal_whatever_is_in_it() {
    for columns in COLUMNS_MIN..=COLUMNS_MAX {
        for rooms in [RoomColumn::Hidden, RoomColumn::Shown] {
            for shown in laid_out(columns, ColorMode::Off, rooms).lines() {
                assert!(width(shown) <= columns, "{columns}, not {}: {shown}", width(shown));
            }
        }
    }
}

#[test]
fn colours_are_all_that_a_terminal_gets_beside_the_text() {
    let coloured = laid_out(80, ColorMode::On, RoomColumn::Hidden);
    assert!(coloured.contains("\x1b[32msaid\x1b[0m"), "{coloured}");
    assert_eq!(uncoloured(&coloured), include_str!("golden.txt"));
}
