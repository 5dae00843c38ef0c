//! Rooms against a real nats-server: races, crashes and recovery.
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use prometheus_client::registry::Registry;
use qiyu_living::{Claim, Config, Living};
use qiyu_nats::{
    Bus,
    bucket::KvEntry,
    log::AppendCondition,
    server::ChildServer,
    service::{CommandError, CommandRefusal},
    stream::BucketName,
};
use qiyu_schema::{
    RoomId, UserId, codec,
    command::{
        CloseRoom, FindRoom, ImposeSanction, LIVING_GROUP, LiftSanction, ListRooms, ListSanctions,
        OpenRoom, RoomPage,
    },
    event::{Event, Record},
    room::{self, RoomEntry},
    sanction::{self, SanctionEntry, SanctionKind},
    subject::{self, RoomKind},
};
use tokio_util::sync::CancellationToken;

use support::{TIMEOUT, app, eventually, user};
use test_servers::start_bus;

/// A nats-server and a database for living processes.
struct Rooms {
    bus: Bus,
    directory: tempfile::TempDir,
    _server: ChildServer,
}

impl Rooms {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (bus, server) = start_bus(directory.path()).await;
        Self { bus, directory, _server: server }
    }

    /// Starts a living process. All processes share one database.
    async fn starts_living(&self) -> (Living, CancellationToken) {
        let stop = CancellationToken::new();
        let config = Config {
            database_url: self.database_url(),
            redis_url: None,
            apps: vec![app()],
            retain: Duration::from_secs(3600),
        };
        let mut registry = Registry::default();
        let living = Living::start(config, &self.bus, &mut registry, stop.clone());
        (living.await.unwrap(), stop)
    }

    fn database_url(&self) -> String {
        format!("sqlite://{}/db/qiyu.db", self.directory.path().display())
    }

    /// Returns room, peak and likes of every record, and whether its end time is known.
    async fn records(&self) -> Vec<(i64, i64, i64, bool)> {
        let pool = sqlx::SqlitePool::connect(&self.database_url()).await.unwrap();
        let rows = sqlx::query_as(
            "SELECT room_id, watch_num, good_num, end_time IS NOT NULL
             FROM t_living_room_record ORDER BY room_id",
        );
        let rows = rows.fetch_all(&pool).await.unwrap();
        pool.close().await;
        rows
    }

    async fn open(&self, anchor: UserId) -> RoomId {
        self.bus.request(LIVING_GROUP, &opening(anchor)).await.unwrap()
    }

    async fn close(&self, room: RoomId, by: UserId) -> Result<(), CommandError> {
        self.bus.request(LIVING_GROUP, &CloseRoom { app: app(), room, by }).await
    }

    async fn is_found(&self, room: RoomId) -> bool {
        self.bus.request(LIVING_GROUP, &FindRoom { app: app(), room }).await.unwrap().is_some()
    }

    async fn list(&self) -> RoomPage {
        let request = ListRooms { app: app(), room_type: 1, page: 1, page_size: 100 };
        self.bus.request(LIVING_GROUP, &request).await.unwrap()
    }

    async fn entry(&self, room: RoomId) -> KvEntry {
        self.bus.bucket(BucketName::Rooms).read(&room::key(app(), room)).await.unwrap()
    }

    async fn claim(&self, anchor: UserId) -> KvEntry {
        let key = format!("{}.{anchor}", app());
        self.bus.bucket(BucketName::Anchors).read(&key).await.unwrap()
    }
}

fn opening(anchor: UserId) -> OpenRoom {
    OpenRoom { app: app(), anchor, room_type: 1, name: None, cover: String::new() }
}

#[tokio::test]
async fn concurrent_openings_of_one_anchor_open_one_room() {
    let stack = Rooms::start().await;
    let (_one, _stop_one) = stack.starts_living().await;
    let (_two, _stop_two) = stack.starts_living().await;
    let anchor = user(10_086);
    let opened: HashSet<RoomId> =
        join_all((0..20).map(|_| stack.open(anchor))).await.into_iter().collect();
    assert_eq!(opened.len(), 1);
    let room = *opened.iter().next().unwrap();
    assert!(stack.is_found(room).await, "found at once through both processes");
    let entry: RoomEntry = codec::decode(&stack.entry(room).await.value.unwrap()).unwrap();
    assert_eq!((entry.anchor, entry.name.as_str()), (anchor, "主播-10086的直播间"));

    assert_ne!(stack.open(user(10_087)).await, room, "another anchor has another room");
    eventually("both are listed, newest first", async || {
        let ids: Vec<_> = stack.list().await.rooms.iter().map(|room| room.room).collect();
        ids.len() == 2 && ids[0] > ids[1]
    })
    .await;
}

#[tokio::test]
async fn a_room_closes_once_and_stays_closed() {
    let stack = Rooms::start().await;
    let (one, _stop_one) = stack.starts_living().await;
    let (_two, _stop_two) = stack.starts_living().await;
    let anchor = user(10_086);
    let room = stack.open(anchor).await;

    let refused = CommandRefusal { code: 501, message: "关播异常，请稍后再试".into() };
    let is_refused = |answer: Result<(), CommandError>| matches!(answer, Err(CommandError::Refused(why)) if why == refused);
    assert!(is_refused(stack.close(room, user(10_087)).await), "another anchor's");
    let unknown = RoomId::try_from(999).unwrap();
    assert!(is_refused(stack.close(unknown, anchor).await), "unknown");

    let closes = join_all((0..10).map(|_| stack.close(room, anchor))).await;
    let (won, lost): (Vec<_>, Vec<_>) = closes.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 9));
    assert!(lost.into_iter().all(is_refused), "the rest get the same refusal");

    assert!(!stack.is_found(room).await);
    assert_eq!(stack.entry(room).await.value, None);
    assert_eq!(stack.claim(anchor).await.value, None);
    eventually("the list has dropped it", async || stack.list().await.rooms.is_empty()).await;

    let next = stack.open(anchor).await;
    assert!(room < next, "an id is never used again");
    assert!(one.ready().is_ok());
}

/// Any process completes the work of one that died after its append.
#[tokio::test]
async fn projections_that_a_crash_left_undone_are_completed_from_the_log() {
    let stack = Rooms::start().await;
    let anchor = user(10_086);
    let append = async |event: Event, room: RoomId, kind: RoomKind| {
        let subject = subject::room(app(), room, kind);
        let (key, record) =
            (format!("test:{kind:?}:{room}"), Record::at(qiyu_nats::now_ms(), event));
        let stored = stack.bus.append(subject, &record, &key, AppendCondition::First, TIMEOUT);
        stored.await.unwrap();
    };
    let id = async || stack.bus.next_room_id(TIMEOUT).await.unwrap();
    let (over, open) = (id().await, id().await);
    for room in [over, open] {
        let event = Event::RoomOpened {
            app: app(),
            room,
            anchor,
            room_type: 1,
            name: "n".into(),
            cover: String::new(),
        };
        append(event, room, RoomKind::Opened).await;
        if room == over {
            let event = Event::RoomClosed {
                app: app(),
                room,
                by: Some(anchor),
                peak: Some(7),
                good_num: Some(9),
            };
            append(event, room, RoomKind::Closed).await;
        }
    }

    let (living, stop) = stack.starts_living().await;
    eventually("the open room is found", async || stack.is_found(open).await).await;
    assert!(!stack.is_found(over).await);
    let counted = (over.get().cast_signed(), 7, 9, true);
    assert_eq!(stack.records().await, [counted], "with the counts of the closing");
    assert!(stack.entry(open).await.value.is_some());
    assert_eq!(stack.entry(over).await.value, None);
    assert_eq!(stack.open(anchor).await, open, "the claim is there too");
    stop.cancel();
    living.stopped().await;

    // The next process starts at the position of this one, and changes nothing.
    let (_living, _stop) = stack.starts_living().await;
    assert!(stack.is_found(open).await);
    stack.close(open, anchor).await.unwrap();
    assert_eq!(stack.entry(open).await.value, None);
}

/// A process that died between its claim and its append does not block the anchor for long.
#[tokio::test]
async fn a_claim_without_an_opening_is_void_after_ten_seconds() {
    let stack = Rooms::start().await;
    let (_living, _stop) = stack.starts_living().await;
    let anchor = user(10_086);
    let dead = stack.bus.next_room_id(TIMEOUT).await.unwrap();
    let claimed = std::time::Instant::now();
    let claim = codec::encode(&Claim { room: dead, at_ms: qiyu_nats::now_ms() }).unwrap();
    let key = format!("{}.{anchor}", app());
    stack.bus.bucket(BucketName::Anchors).set_if(&key, 0, claim, None).await.unwrap();

    let opened = stack.open(anchor).await;
    assert_ne!(opened, dead);
    assert!(claimed.elapsed() > Duration::from_secs(9), "not before it is void");
    assert_eq!(stack.open(anchor).await, opened);
}

fn mute(room: Option<RoomId>, user: UserId, by: Option<UserId>) -> ImposeSanction {
    let (sanction, reason) = (SanctionKind::Mute, "loud".to_owned());
    ImposeSanction { app: app(), room, user, sanction, until_ms: None, reason, by }
}

fn code<T>(answer: Result<T, CommandError>) -> Option<u16> {
    match answer {
        Err(CommandError::Refused(refusal)) => Some(refusal.code),
        _ => None,
    }
}

#[tokio::test]
async fn only_the_anchor_or_a_server_imposes_sanctions_and_they_are_listed_at_once() {
    let stack = Rooms::start().await;
    let (_living, _stop) = stack.starts_living().await;
    let (anchor, other, loud) = (user(10_086), user(10_087), user(10_088));
    let room = stack.open(anchor).await;
    let impose = async |request: ImposeSanction| stack.bus.request(LIVING_GROUP, &request).await;
    let list = async |room, by| {
        let request = ListSanctions { app: app(), room, user: None, by, after: None, limit: 10 };
        stack.bus.request(LIVING_GROUP, &request).await
    };
    let lift = async |room, by| {
        let request =
            LiftSanction { app: app(), room, user: loud, sanction: SanctionKind::Mute, by };
        stack.bus.request(LIVING_GROUP, &request).await
    };

    assert_eq!(code(impose(mute(Some(room), loud, Some(other))).await), Some(403));
    assert_eq!(code(impose(mute(None, loud, Some(anchor))).await), Some(400), "no room named");
    assert_eq!(code(impose(mute(Some(room), anchor, Some(anchor))).await), Some(400), "oneself");
    assert_eq!(code(impose(mute(Some(unopened_room()), loud, None)).await), Some(404));
    let past = ImposeSanction { until_ms: Some(1), ..mute(Some(room), loud, None) };
    assert_eq!(code(impose(past).await), Some(400));
    let wordy = ImposeSanction { reason: "x".repeat(201), ..mute(Some(room), loud, None) };
    assert_eq!(code(impose(wordy).await), Some(400));
    assert_eq!(code(list(Some(room), Some(other)).await), Some(403));

    let msg_id = impose(mute(Some(room), loud, Some(anchor))).await.unwrap();
    let listed = list(Some(room), Some(anchor)).await.unwrap();
    let [held] = &listed.list[..] else { panic!("{listed:?}") };
    assert_eq!((held.user, held.sanction, held.msg_id), (loud, SanctionKind::Mute, msg_id));
    assert_eq!((held.reason.as_str(), held.by), ("loud", Some(anchor)));
    assert_eq!(list(None, None).await.unwrap().list, [], "not in the whole app");

    assert!(lift(Some(room), Some(anchor)).await.unwrap());
    assert!(!lift(Some(room), Some(anchor)).await.unwrap(), "nothing left to lift");
    assert_eq!(list(Some(room), None).await.unwrap().list, []);

    impose(mute(Some(room), loud, None)).await.unwrap();
    stack.close(room, anchor).await.unwrap();
    assert_eq!(code(list(Some(room), None).await), Some(404), "a closed room has none");
    eventually("nothing is left of it in the bucket", async || {
        stack.bus.bucket(BucketName::Sanctions).list().await.unwrap().is_empty()
    })
    .await;
}

/// Returns a room that was never opened.
fn unopened_room() -> RoomId {
    RoomId::try_from(999).unwrap()
}

/// Any process completes the work of one that died between the log and the bucket, and an event
/// that is applied again changes nothing.
#[tokio::test]
async fn sanctions_in_the_bucket_follow_the_log() {
    let stack = Rooms::start().await;
    let loud = user(10_088);
    let append = async |event: Event, key: &str| {
        let (subject, record) = (
            subject::user(app(), loud, subject::UserKind::Sanctions),
            Record::at(qiyu_nats::now_ms(), event),
        );
        let stored = stack.bus.append(subject, &record, key, AppendCondition::Any, TIMEOUT);
        stored.await.unwrap();
    };
    let taken = |sanction| Event::SanctionImposed {
        app: app(),
        room: None,
        user: loud,
        sanction,
        until_ms: None,
        reason: String::new(),
        by: None,
    };
    let lifted = Event::SanctionLifted {
        app: app(),
        room: None,
        user: loud,
        sanction: SanctionKind::Mute,
        by: None,
    };
    append(taken(SanctionKind::Mute), "1").await;
    append(taken(SanctionKind::Ban), "2").await;
    append(lifted, "3").await;
    let entry = async || {
        let key = sanction::key(app(), None, loud);
        let kv_entry = stack.bus.bucket(BucketName::Sanctions).read(&key).await.unwrap();
        kv_entry
            .value
            .map(|value| codec::decode::<SanctionEntry>(&value).unwrap())
            .unwrap_or_default()
    };
    let (living, stop) = stack.starts_living().await;
    eventually("all events are applied", async || {
        let entry = entry().await;
        entry.is_banned(0) && !entry.is_muted(0)
    })
    .await;
    stop.cancel();
    living.stopped().await;
    let before = entry().await;

    // Another database, so the log is applied from its beginning.
    std::fs::remove_dir_all(stack.directory.path().join("db")).unwrap();
    append(taken(SanctionKind::Kick), "4").await;
    let (_living, _stop) = stack.starts_living().await;
    eventually("the last event is applied", async || entry().await.kick.is_some()).await;
    let after = entry().await;
    assert_eq!((after.ban, after.mute), (before.ban, None));
}
