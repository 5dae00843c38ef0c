//! What was stored once must be readable for ever: a sample of every shape in
//! `nats/fixtures/`, and the value it must still decode to.
//!
//! Samples are added, never edited, never deleted. A new variant does not
//! compile until it has a row here; a new field is an `Option` (or has a serde
//! default), its row's value says what old bytes mean by it, and a row in
//! [`later_shapes`] keeps a sample that has it.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{collections::BTreeSet, env, fmt::Debug, fs, num::NonZeroU64, path::PathBuf};

use qiyu_nats::{
    fact::UserFact,
    inbox::InboxMessage,
    position::{Claim, Position},
};
use qiyu_schema::{
    AppId, ConnId, Incarnation, MsgId, RoomId, UserId, codec,
    envelope::{DirectTarget, Envelope},
    event::{
        DisconnectReason, Event, MemberChange, Record, Sender, SessionChange, UnackedMessage,
        VERSION,
    },
    ledger::{
        Dispatch, DispatchBatch, DispatchKind, Exception, LedgerBatch, Outcome, ReadBatch,
        ReadPage, Recipient, UnackedReason, Via,
    },
    room::{RoomCounts, RoomEntry},
    sanction::{Sanction, SanctionEntry, SanctionKind},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// One stored value.
struct Sample {
    /// Its file, without the ending.
    name: String,
    /// How today's code writes the value.
    today: Vec<u8>,
    /// Whether bytes decode to exactly the value.
    reads: Reads,
}

type Reads = Box<dyn Fn(&[u8]) -> Result<(), String>>;

fn sample<T>(name: impl Into<String>, value: T) -> Sample
where
    T: Serialize + DeserializeOwned + PartialEq + Debug + 'static,
{
    let today = codec::encode(&value).unwrap().to_vec();
    let reads = move |bytes: &[u8]| match codec::decode::<T>(bytes) {
        Ok(read) if read == value => Ok(()),
        Ok(read) => Err(format!("it decodes to\n  {read:?}\ninstead of\n  {value:?}")),
        Err(error) => Err(format!("{error}: {:?}", std::error::Error::source(&error))),
    };
    Sample { name: name.into(), today, reads: Box::new(reads) }
}

/// A sample of each variant. The sample files are named `<type>-<variant>` after
/// the first names these had; `as` gives the first name of a renamed one.
/// `unless` names the variant that stands for values this build does not know;
/// no writer ever stores it.
macro_rules! samples {
    ($all:ident: $of:ident $(as $of_file:literal)? $(unless $unknown:ident)? {
        $($variant:ident $(as $variant_file:literal)? { $($body:tt)* })+
    }) => {
        fn $all() -> Vec<Sample> {
            // Without a catch-all, so that a new variant needs a row to compile.
            fn file_name(value: &$of) -> String {
                let of = [$($of_file,)? stringify!($of)][0];
                let variant = match value {
                    $($of::$variant { .. } => [$($variant_file,)? stringify!($variant)][0],)+
                    $($of::$unknown => unreachable!("never stored"),)?
                };
                format!("{of}-{variant}")
            }
            vec![$({
                let value = $of::$variant { $($body)* };
                sample(file_name(&value), value)
            }),+]
        }
    };
}

samples! { events: Event unless Unknown {
    RoomOpened {
        app: app(),
        room: room(),
        anchor: user(1),
        room_type: 1,
        name: "旗鱼".into(),
        cover: "https://example.com/cover.png".into(),
    }
    RoomClosed { app: app(), room: room(), by: Some(user(1)), peak: None, good_num: None }
    RoomMessageSent {
        app: app(),
        room: room(),
        sender: sender(),
        biz_code: 5555,
        data: r#"{"content":"\"旗鱼\"\n"}"#.into(),
    }
    DirectMessageSent {
        app: app(),
        to: large_user(),
        sender: Sender { client_msg_id: None, ..sender() },
        biz_code: 5555,
        data: r#"{"content":"psst"}"#.into(),
    }
    BusinessSent {
        app: app(),
        room: Some(room()),
        to: None,
        sender: sender(),
        biz_code: 7001,
        data: r#"{"roomId":7,"gift":"rose"}"#.into(),
    }
    RoomLiked { app: app(), room: room(), gateway: gateway(), count: 42 }
    MembersChanged {
        app: app(),
        room: room(),
        gateway: gateway(),
        changes: vec![
            MemberChange::Joined { connection: connection(1), user: user(1), resumed: false },
            MemberChange::Left { connection: connection(1), user: user(1), last_seen: None },
        ],
    }
    SessionsChanged {
        app: app(),
        gateway: gateway(),
        changes: vec![
            SessionChange::Online { connection: connection(1), user: user(1), room: None },
            SessionChange::Read { user: user(1), msg_ids: vec![MsgId::at(8)] },
        ],
    }
    Unacknowledged {
        app: app(),
        room: room(),
        gateway: gateway(),
        messages: vec![
            UnackedMessage { msg_id: MsgId::at(8), users: None, sends: 1 },
            UnackedMessage {
                msg_id: MsgId::at(9),
                users: Some(vec![user(1), large_user()]),
                sends: 2,
            },
        ],
        keep: true,
    }
    GatewayGone { gateway: gateway() }
    SanctionImposed as "MeasureTaken" {
        app: app(),
        room: Some(room()),
        user: user(1),
        sanction: SanctionKind::Mute,
        until_ms: Some(1_700_000_000_000),
        reason: "刷屏".into(),
        by: Some(user(2)),
    }
    SanctionLifted as "MeasureLifted" { app: app(), room: None, user: user(1), sanction: SanctionKind::Ban, by: None }
    ContentRefused {
        app: app(),
        room: Some(room()),
        to: None,
        sender: sender(),
        biz_code: 5555,
        content: "旗鱼".into(),
        reason: "word 3 of the list".into(),
    }
}}

samples! { sanction_kinds: SanctionKind as "Measure" unless Unknown {
    Mute {}
    Kick {}
    Ban {}
}}

samples! { member_changes: MemberChange unless Unknown {
    Joined { connection: connection(1), user: user(1), resumed: true }
    Left { connection: connection(1), user: large_user(), last_seen: None }
}}

samples! { session_changes: SessionChange unless Unknown {
    Online { connection: connection(2), user: user(1), room: Some(room()) }
    Offline { connection: connection(2), user: user(1), reason: DisconnectReason::Logout }
    Read { user: large_user(), msg_ids: vec![MsgId::at(8), MsgId::at(9)] }
}}

samples! { disconnect_reasons: DisconnectReason as "Ending" unless Other {
    Logout {}
    Disconnect {}
    Idle {}
    Slow {}
    Abuse {}
    Replaced {}
    Kicked {}
    Banned {}
    Drained {}
    Unstored {}
}}

samples! { envelopes: Envelope unless Unknown {
    Room {
        app: app(),
        room: room(),
        msg_id: MsgId::at(9),
        prev: MsgId::at(8),
        from: Some(user(1)),
        biz_code: 5555,
        data: r#"{"content":"旗鱼"}"#.into(),
        at_ms: None,
    }
    RoomClosed {
        app: app(),
        room: room(),
        msg_id: MsgId::at(10),
        prev: MsgId::at(9),
        late: vec![connection(3)],
    }
    Repeat {
        app: app(),
        room: room(),
        msg_id: MsgId::at(9),
        sends: 1,
        from: Some(user(1)),
        biz_code: 5555,
        data: "{}".into(),
        to: vec![connection(1), connection(2)],
    }
    Direct {
        app: app(),
        user: large_user(),
        msg_id: MsgId::at(9),
        biz_code: 5555,
        data: "{}".into(),
        to: vec![
            DirectTarget { connection: connection(1), prev: None },
            DirectTarget { connection: connection(2), prev: Some(MsgId::at(8)) },
        ],
        at_ms: None,
    }
}}

samples! { vias: Via unless Other {
    Envelope {}
    Log {}
    Resume {}
    Lagging {}
    Repeat {}
    Late {}
}}

samples! { dispatch_kinds: DispatchKind as "How" unless Other {
    Stored {}
    Full {}
    Refused {}
    NoRecipient as "Nobody" {}
}}

samples! { unacked_reasons: UnackedReason as "Reason" unless Other {
    NotAcknowledged {}
    Lagging {}
    Left {}
    RoomClosed {}
}}

/// What is stored and is no enum.
fn structs() -> Vec<Sample> {
    let exception = Exception {
        user: user(2),
        connection: connection(2),
        reason: UnackedReason::NotAcknowledged,
    };
    let outcome = Outcome {
        app: app(),
        room: Some(room()),
        msg_id: MsgId::at(9),
        via: Via::Envelope,
        resolved: 5,
        written: 5,
        acknowledged: 3,
        resent: 2,
        given_up: 1,
        left: 1,
        exceptions: vec![exception],
        to: None,
        lagging: 0,
        lagging_recipients: Vec::new(),
    };
    let dispatch = Dispatch {
        msg_id: MsgId::at(9),
        to: Some(gateway()),
        kind: DispatchKind::Stored,
        cause: Some(MsgId::at(11)),
    };
    let page = ReadPage {
        app: app(),
        user: large_user(),
        room: Some(room()),
        first: MsgId::at(3),
        last: MsgId::at(9),
    };
    let claim = Claim { worker: "w-1".parse().unwrap(), epoch: 1_700_000_000_000 };
    vec![
        sample(
            "Record",
            Record {
                v: VERSION,
                at_ms: 1_700_000_000_000,
                event: Event::GatewayGone { gateway: gateway() },
            },
        ),
        sample(
            "LedgerBatch",
            LedgerBatch { gateway: gateway(), at_ms: 1_700_000_000_000, outcomes: vec![outcome] },
        ),
        sample(
            "HandoverBatch",
            DispatchBatch {
                worker: "w-1".parse().unwrap(),
                epoch: 1_700_000_000_000,
                at_ms: 1_700_000_000_000,
                dispatches: vec![
                    dispatch.clone(),
                    Dispatch { to: None, kind: DispatchKind::NoRecipient, cause: None, ..dispatch },
                ],
            },
        ),
        sample(
            "ReadBatch",
            ReadBatch {
                at_ms: 1_700_000_000_000,
                pages: vec![page, ReadPage { room: None, ..page }],
            },
        ),
        sample(
            "UserFact",
            UserFact {
                app: app(),
                user: large_user(),
                position: MsgId::at(9),
                at_ms: 1_700_000_000_000,
            },
        ),
        sample("Kept", InboxMessage { msg_id: MsgId::at(9), biz_code: 5555, data: "{}".into() }),
        sample(
            "RoomEntry",
            RoomEntry {
                anchor: user(1),
                room_type: 2,
                name: "旗鱼".into(),
                cover: String::new(),
                opened: MsgId::at(3),
                opened_at_ms: 1_700_000_000_000,
            },
        ),
        sample("RoomCounts", RoomCounts { watch_num: 3, good_num: 1 << 40, peak: None }),
        sample("MeasureEntry", {
            let mut entry = SanctionEntry::default();
            let taken = |seq| Sanction {
                msg_id: MsgId::at(seq),
                at_ms: 1_700_000_000_000,
                until_ms: Some(1_700_000_060_000),
                reason: "刷屏".into(),
                by: Some(user(2)),
            };
            entry.impose(SanctionKind::Mute, taken(8));
            entry.impose(SanctionKind::Ban, Sanction { until_ms: None, by: None, ..taken(9) });
            entry.impose(SanctionKind::Kick, taken(10));
            entry
        }),
        sample("Claim", claim.clone()),
        sample("Position", Position { seq: 9, by: claim }),
    ]
}

/// Shapes that were shipped after the first of their kind: what a variant got
/// later is not in its first sample. Named `<first>-<what came>`.
fn later_shapes() -> Vec<Sample> {
    let recipient = Recipient { user: large_user(), connection: connection(7) };
    let outcome = Outcome {
        app: app(),
        room: Some(room()),
        msg_id: MsgId::at(9),
        via: Via::Resume,
        resolved: 1,
        written: 1,
        acknowledged: 1,
        resent: 0,
        given_up: 0,
        left: 0,
        exceptions: Vec::new(),
        to: Some(recipient),
        lagging: 0,
        lagging_recipients: Vec::new(),
    };
    let with_laggards =
        Outcome { to: None, lagging: 2, lagging_recipients: vec![recipient], ..outcome.clone() };
    let last_seen = Some(MsgId::at(1 << 40));
    let left = MemberChange::Left { connection: connection(1), user: large_user(), last_seen };
    let by_the_server = Sender {
        user: None,
        gateway: None,
        connection: None,
        client_msg_id: sender().client_msg_id,
    };
    let (app, room, data) = (app(), room(), r#"{"gift":"rose"}"#.to_owned());
    let closed =
        Event::RoomClosed { app, room, by: None, peak: Some(1 << 33), good_num: Some(1 << 40) };
    let at_ms = Some(1_700_000_000_000);
    vec![
        sample(
            "Envelope-Room-at",
            Envelope::Room {
                app,
                room,
                msg_id: MsgId::at(9),
                prev: MsgId::at(8),
                from: Some(user(1)),
                biz_code: 5555,
                data: "{}".into(),
                at_ms,
            },
        ),
        sample(
            "Envelope-Direct-at",
            Envelope::Direct {
                app,
                user: large_user(),
                msg_id: MsgId::at(9),
                biz_code: 5555,
                data: "{}".into(),
                to: vec![DirectTarget { connection: connection(1), prev: None }],
                at_ms,
            },
        ),
        sample(
            "Event-RoomMessageSent-by-the-server",
            Event::RoomMessageSent {
                app,
                room,
                sender: by_the_server.clone(),
                biz_code: 7001,
                data: data.clone(),
            },
        ),
        sample(
            "Event-DirectMessageSent-by-the-server",
            Event::DirectMessageSent {
                app,
                to: large_user(),
                sender: Sender { user: Some(user(1)), ..by_the_server },
                biz_code: 5555,
                data: data.clone(),
            },
        ),
        sample(
            "Envelope-Room-by-the-system",
            Envelope::Room {
                app,
                room,
                msg_id: MsgId::at(9),
                prev: MsgId::at(8),
                from: None,
                biz_code: 7001,
                data: data.clone(),
                at_ms: None,
            },
        ),
        sample(
            "Envelope-Repeat-by-the-system",
            Envelope::Repeat {
                app,
                room,
                msg_id: MsgId::at(9),
                sends: 1,
                from: None,
                biz_code: 7001,
                data,
                to: vec![connection(1)],
            },
        ),
        sample("Outcome-to", outcome),
        sample("Outcome-laggards", with_laggards),
        sample("MemberChange-Left-heard", left),
        sample("Event-RoomClosed-counted", closed),
        sample("RoomCounts-peak", RoomCounts { watch_num: 3, good_num: 0, peak: Some(5) }),
    ]
}

fn all() -> Vec<Sample> {
    [
        events(),
        member_changes(),
        session_changes(),
        disconnect_reasons(),
        sanction_kinds(),
        envelopes(),
        vias(),
        dispatch_kinds(),
        unacked_reasons(),
        structs(),
        later_shapes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn every_stored_sample_still_says_what_it_said() {
    let (mut missing, mut wrong) = (Vec::new(), Vec::new());
    for sample in all() {
        let path = file(&sample.name);
        if !path.exists() && env::var_os("UPDATE_FIXTURES").is_some_and(|on| on == "1") {
            fs::write(&path, &sample.today).unwrap();
            println!("written: {}", path.display());
        }
        match fs::read(&path) {
            Ok(bytes) => wrong.extend(told(&sample, "stored", &bytes)),
            Err(_) => missing.push(sample.name.clone()),
        }
        wrong.extend(told(&sample, "written today", &sample.today));
    }
    assert!(
        wrong.is_empty(),
        "what was stored once must be readable for ever; make the type fit the sample, never the \
         sample the type:\n{}",
        wrong.join("\n")
    );
    assert!(
        missing.is_empty(),
        "no sample in nats/fixtures of {}; write what is missing, and commit it, with\n  \
         UPDATE_FIXTURES=1 cargo test -p qiyu-nats --test fixtures",
        missing.join(", ")
    );
}

#[test]
fn no_sample_is_without_a_value() {
    let known: BTreeSet<PathBuf> = all().iter().map(|sample| file(&sample.name)).collect();
    let there = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    let strangers: Vec<PathBuf> = there.filter(|path| !known.contains(path)).collect();
    assert!(
        strangers.is_empty(),
        "samples no row knows, though somebody stored them: {strangers:?}"
    );
}

#[test]
fn a_field_of_the_future_is_passed_over() {
    for sample in all() {
        let mut value: Value = codec::decode(&sample.today).unwrap();
        add_field(&mut value);
        let bytes = codec::encode(&value).unwrap();
        let told = told(&sample, "with a field more in every map", &bytes);
        assert!(told.is_none(), "{}", told.unwrap_or_default());
    }
}

#[test]
fn a_kind_of_the_future_is_unknown() {
    for sample in events() {
        assert_eq!(codec::decode::<Event>(&of_the_future(&sample)).unwrap(), Event::Unknown);
    }
    for sample in envelopes() {
        assert_eq!(codec::decode::<Envelope>(&of_the_future(&sample)).unwrap(), Envelope::Unknown);
    }
    let word = codec::encode(&"of_the_future").unwrap();
    assert_eq!(codec::decode::<DisconnectReason>(&word).unwrap(), DisconnectReason::Other);
    assert_eq!(codec::decode::<SanctionKind>(&word).unwrap(), SanctionKind::Unknown);
    assert_eq!(codec::decode::<Via>(&word).unwrap(), Via::Other);
    assert_eq!(codec::decode::<UnackedReason>(&word).unwrap(), UnackedReason::Other);
    assert_eq!(codec::decode::<DispatchKind>(&word).unwrap(), DispatchKind::Other);
}

fn told(sample: &Sample, which: &str, bytes: &[u8]) -> Option<String> {
    let fault = (sample.reads)(bytes).err()?;
    Some(format!("{} {which}: {fault}", sample.name))
}

fn add_field(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(add_field);
            let nested = serde_json::json!({ "list": [1, "two", null] });
            fields.insert("a_field_of_the_future".into(), nested);
        }
        Value::Array(values) => values.iter_mut().for_each(add_field),
        _ => {}
    }
}

/// The sample's fields under a kind no build knows.
fn of_the_future(sample: &Sample) -> Vec<u8> {
    let mut value: Value = codec::decode(&sample.today).unwrap();
    value["kind"] = "of_the_future".into();
    codec::encode(&value).unwrap().to_vec()
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn file(name: &str) -> PathBuf {
    directory().join(format!("{name}.msgpack"))
}

fn app() -> AppId {
    "10001".parse().unwrap()
}

fn room() -> RoomId {
    "7".parse().unwrap()
}

fn user(n: u64) -> UserId {
    (10_000 + n).try_into().unwrap()
}

/// Over 2^53: whoever makes a float of it loses digits.
fn large_user() -> UserId {
    "285608972927369217".parse().unwrap()
}

fn connection(n: u64) -> ConnId {
    ConnId(NonZeroU64::new(n).unwrap())
}

fn gateway() -> Incarnation {
    Incarnation { id: "gw-1".parse().unwrap(), epoch: 1_700_000_000_000 }
}

fn sender() -> Sender {
    Sender {
        user: Some(user(1)),
        gateway: Some(gateway()),
        connection: Some(connection(1)),
        client_msg_id: Some("a-1".parse().unwrap()),
    }
}
