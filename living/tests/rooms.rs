//! Rooms against a real nats-server: who wins, what survives, what heals.
#![allow(clippy::unwrap_used)]

use std::{collections::HashSet, future::Future, time::Duration};

use futures_util::future::join_all;
use prometheus_client::registry::Registry;
use qiyu_living::{Config, Living};
use qiyu_nats::{
    Bus, BusConfig, Profile,
    bucket::Slot,
    log::Condition,
    server::{ChildServer, Guard, find},
    service::{CommandError, Refusal},
    stream::BucketName,
};
use qiyu_schema::{
    AppId, RoomId, UserId, codec,
    command::{
        CloseRoom, FindRoom, LIVING, ListMeasures, ListRooms, Moderate, OpenRoom, Pardon, RoomPage,
    },
    event::{Event, Record},
    measure::{self, Measure, MeasureEntry},
    room::{self, RoomEntry},
    subject::{self, RoomKind},
};
use tokio_util::sync::CancellationToken;

/// How long anything here may take to come true.
const PATIENCE: Duration = Duration::from_secs(20);

struct Stack {
    bus: Bus,
    directory: tempfile::TempDir,
    _server: ChildServer,
}

impl Stack {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let binary = find(None, &mut |_| {}).unwrap();
        let path = directory.path();
        let server =
            ChildServer::start(&binary, path, Profile::Default, &Guard::Drop, &mut |_| {}).await;
        let server = server.unwrap();
        let config = BusConfig {
            url: server.url().clone(),
            name: "test".into(),
            replicas: 1,
            retain: Duration::from_secs(3600),
            ack_wait: Duration::from_secs(4),
            profile: Profile::Default,
        };
        let bus = Bus::connect(&config).await.unwrap();
        bus.provision().await.unwrap();
        Self { bus, directory, _server: server }
    }

    /// A process that answers for rooms; all of a stack share one database.
    async fn living(&self) -> (Living, CancellationToken) {
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

    /// Room, peak, likes of every record, and whether its end is known.
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
        self.bus.ask(LIVING, &opening(anchor)).await.unwrap()
    }

    async fn close(&self, room: RoomId, by: UserId) -> Result<(), CommandError> {
        self.bus.ask(LIVING, &CloseRoom { app: app(), room, by }).await
    }

    async fn is_found(&self, room: RoomId) -> bool {
        self.bus.ask(LIVING, &FindRoom { app: app(), room }).await.unwrap().is_some()
    }

    async fn list(&self) -> RoomPage {
        let asked = ListRooms { app: app(), room_type: 1, page: 1, page_size: 100 };
        self.bus.ask(LIVING, &asked).await.unwrap()
    }

    async fn entry(&self, room: RoomId) -> Slot {
        self.bus.bucket(BucketName::Rooms).read(&room::key(app(), room)).await.unwrap()
    }

    async fn claim(&self, anchor: UserId) -> Slot {
        let key = format!("{}.{anchor}", app());
        self.bus.bucket(BucketName::Anchors).read(&key).await.unwrap()
    }
}

fn app() -> AppId {
    "10001".parse().unwrap()
}

fn user(id: u64) -> UserId {
    UserId::try_from(id).unwrap()
}

fn opening(anchor: UserId) -> OpenRoom {
    OpenRoom { app: app(), anchor, room_type: 1, name: None, cover: String::new() }
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what}");
}

#[tokio::test]
async fn an_anchor_has_one_room_however_many_ask() {
    let stack = Stack::start().await;
    let (_one, _stop_one) = stack.living().await;
    let (_two, _stop_two) = stack.living().await;
    let anchor = user(10_086);
    let opened: HashSet<RoomId> =
        join_all((0..20).map(|_| stack.open(anchor))).await.into_iter().collect();
    assert_eq!(opened.len(), 1);
    let room = *opened.iter().next().unwrap();
    assert!(stack.is_found(room).await, "found at once by whoever is asked");
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
    let stack = Stack::start().await;
    let (one, _stop_one) = stack.living().await;
    let (_two, _stop_two) = stack.living().await;
    let anchor = user(10_086);
    let room = stack.open(anchor).await;

    let refused = Refusal { code: 501, message: "关播异常，请稍后再试".into() };
    let is_refused = |answer: Result<(), CommandError>| matches!(answer, Err(CommandError::Refused(why)) if why == refused);
    assert!(is_refused(stack.close(room, user(10_087)).await), "not theirs");
    let unknown = RoomId::try_from(999).unwrap();
    assert!(is_refused(stack.close(unknown, anchor).await), "unknown");

    let closes = join_all((0..10).map(|_| stack.close(room, anchor))).await;
    let (won, lost): (Vec<_>, Vec<_>) = closes.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 9));
    assert!(lost.into_iter().all(is_refused), "the rest hear the same words");

    assert!(!stack.is_found(room).await);
    assert_eq!(stack.entry(room).await.value, None);
    assert_eq!(stack.claim(anchor).await.value, None);
    eventually("the list has dropped it", async || stack.list().await.rooms.is_empty()).await;

    let next = stack.open(anchor).await;
    assert!(room < next, "an id is never used again");
    assert!(one.ready().is_ok());
}

/// A process that died after its append is made good by any other.
#[tokio::test]
async fn the_log_heals_what_a_crash_left_undone() {
    let stack = Stack::start().await;
    let anchor = user(10_086);
    let append = async |event: Event, room: RoomId, kind: RoomKind| {
        let subject = subject::room(app(), room, kind);
        let (key, record) =
            (format!("test:{kind:?}:{room}"), Record::at(qiyu_nats::now_ms(), event));
        let stored = stack.bus.append(subject, &record, &key, Condition::First, PATIENCE);
        stored.await.unwrap();
    };
    let id = async || stack.bus.next_room_id(PATIENCE).await.unwrap();
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

    let (living, stop) = stack.living().await;
    eventually("the open room is found", async || stack.is_found(open).await).await;
    assert!(!stack.is_found(over).await);
    let counted = (over.get().cast_signed(), 7, 9, true);
    assert_eq!(stack.records().await, [counted], "with what the closing says");
    assert!(stack.entry(open).await.value.is_some());
    assert_eq!(stack.entry(over).await.value, None);
    assert_eq!(stack.open(anchor).await, open, "the claim is there too");
    stop.cancel();
    living.stopped().await;

    // The next process starts where this one ended, and changes nothing.
    let (_living, _stop) = stack.living().await;
    assert!(stack.is_found(open).await);
    stack.close(open, anchor).await.unwrap();
    assert_eq!(stack.entry(open).await.value, None);
}

/// A process that died between its claim and its append binds nobody for long.
#[tokio::test]
async fn a_claim_without_an_opening_is_void_after_ten_seconds() {
    let stack = Stack::start().await;
    let (_living, _stop) = stack.living().await;
    #[derive(serde::Serialize)]
    struct Claim {
        room: RoomId,
        at_ms: u64,
    }
    let anchor = user(10_086);
    let dead = stack.bus.next_room_id(PATIENCE).await.unwrap();
    let claimed = std::time::Instant::now();
    let claim = codec::encode(&Claim { room: dead, at_ms: qiyu_nats::now_ms() }).unwrap();
    let key = format!("{}.{anchor}", app());
    stack.bus.bucket(BucketName::Anchors).set_if(&key, 0, claim, None).await.unwrap();

    let opened = stack.open(anchor).await;
    assert_ne!(opened, dead);
    assert!(Duration::from_secs(9) < claimed.elapsed(), "not before it is void");
    assert_eq!(stack.open(anchor).await, opened);
}

fn mute(room: Option<RoomId>, user: UserId, by: Option<UserId>) -> Moderate {
    let (measure, reason) = (Measure::Mute, "loud".to_owned());
    Moderate { app: app(), room, user, measure, until_ms: None, reason, by }
}

fn code<T>(answer: Result<T, CommandError>) -> Option<u16> {
    match answer {
        Err(CommandError::Refused(refusal)) => Some(refusal.code),
        _ => None,
    }
}

#[tokio::test]
async fn measures_are_taken_by_those_who_may_and_listed_at_once() {
    let stack = Stack::start().await;
    let (_living, _stop) = stack.living().await;
    let (anchor, other, loud) = (user(10_086), user(10_087), user(10_088));
    let room = stack.open(anchor).await;
    let take = async |asked: Moderate| stack.bus.ask(LIVING, &asked).await;
    let list = async |room, by| {
        let asked = ListMeasures { app: app(), room, user: None, by, after: None, limit: 10 };
        stack.bus.ask(LIVING, &asked).await
    };
    let lift = async |room, by| {
        let asked = Pardon { app: app(), room, user: loud, measure: Measure::Mute, by };
        stack.bus.ask(LIVING, &asked).await
    };

    assert_eq!(code(take(mute(Some(room), loud, Some(other))).await), Some(403));
    assert_eq!(code(take(mute(None, loud, Some(anchor))).await), Some(400), "no room named");
    assert_eq!(code(take(mute(Some(room), anchor, Some(anchor))).await), Some(400), "oneself");
    assert_eq!(code(take(mute(Some(user_room()), loud, None)).await), Some(404));
    let past = Moderate { until_ms: Some(1), ..mute(Some(room), loud, None) };
    assert_eq!(code(take(past).await), Some(400));
    let wordy = Moderate { reason: "x".repeat(201), ..mute(Some(room), loud, None) };
    assert_eq!(code(take(wordy).await), Some(400));
    assert_eq!(code(list(Some(room), Some(other)).await), Some(403));

    let msg_id = take(mute(Some(room), loud, Some(anchor))).await.unwrap();
    let listed = list(Some(room), Some(anchor)).await.unwrap();
    let [held] = &listed.list[..] else { panic!("{listed:?}") };
    assert_eq!((held.user, held.measure, held.msg_id), (loud, Measure::Mute, msg_id));
    assert_eq!((held.reason.as_str(), held.by), ("loud", Some(anchor)));
    assert_eq!(list(None, None).await.unwrap().list, [], "not in the whole app");

    assert!(lift(Some(room), Some(anchor)).await.unwrap());
    assert!(!lift(Some(room), Some(anchor)).await.unwrap(), "nothing left to lift");
    assert_eq!(list(Some(room), None).await.unwrap().list, []);

    take(mute(Some(room), loud, None)).await.unwrap();
    stack.close(room, anchor).await.unwrap();
    assert_eq!(code(list(Some(room), None).await), Some(404), "a closed room has none");
    eventually("nothing is left of it in the bucket", async || {
        stack.bus.bucket(BucketName::Measures).list().await.unwrap().is_empty()
    })
    .await;
}

/// A room nobody opened.
fn user_room() -> RoomId {
    RoomId::try_from(999).unwrap()
}

/// A process that died between the log and the bucket is made good by any other,
/// and what the log tells again changes nothing.
#[tokio::test]
async fn measures_are_what_the_log_says() {
    let stack = Stack::start().await;
    let loud = user(10_088);
    let append = async |event: Event, key: &str| {
        let (subject, record) =
            (subject::user_measures(app(), loud), Record::at(qiyu_nats::now_ms(), event));
        let stored = stack.bus.append(subject, &record, key, Condition::Any, PATIENCE);
        stored.await.unwrap();
    };
    let taken = |measure| Event::MeasureTaken {
        app: app(),
        room: None,
        user: loud,
        measure,
        until_ms: None,
        reason: String::new(),
        by: None,
    };
    let lifted = Event::MeasureLifted {
        app: app(),
        room: None,
        user: loud,
        measure: Measure::Mute,
        by: None,
    };
    append(taken(Measure::Mute), "1").await;
    append(taken(Measure::Ban), "2").await;
    append(lifted, "3").await;
    let entry = async || {
        let key = measure::key(app(), None, loud);
        let slot = stack.bus.bucket(BucketName::Measures).read(&key).await.unwrap();
        slot.value.map(|value| codec::decode::<MeasureEntry>(&value).unwrap()).unwrap_or_default()
    };
    let (living, stop) = stack.living().await;
    eventually("it is folded to its end", async || {
        let entry = entry().await;
        entry.is_banned(0) && !entry.is_muted(0)
    })
    .await;
    stop.cancel();
    living.stopped().await;
    let before = entry().await;

    // Another database, so the log is told from its beginning.
    std::fs::remove_dir_all(stack.directory.path().join("db")).unwrap();
    append(taken(Measure::Kick), "4").await;
    let (_living, _stop) = stack.living().await;
    eventually("the last event is folded", async || entry().await.kick.is_some()).await;
    let after = entry().await;
    assert_eq!((after.ban, after.mute), (before.ban, None));
}
