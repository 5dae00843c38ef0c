//! How long a partition takes to be taken over, whatever the age of its log.
//!
//! `QIYU_TAKEOVER_EVENTS=500000 cargo test --release -p qiyu-fanout --test takeover -- --nocapture`
//! measures an old one; docs/RELIABILITY.md has the results.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use prometheus_client::registry::Registry;
use qiyu_fanout::{Config, Fanout};
use qiyu_nats::{
    Bus,
    bucket::KvEntry,
    log::{APPEND_DEADLINE, AppendCondition},
    stream::BucketName,
};
use qiyu_schema::{
    AppId, Incarnation, Partition, RoomId, UserId,
    event::{Event, Record, Sender},
    subject::{self, RoomKind},
};
use test_servers::start_bus;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// More than a snapshot waits for, so that there is one.
const EVENTS: u64 = 25_000;
/// People who talk, in so many rooms of one partition; each gives each message a name.
const PEOPLE: u64 = 1_000;
const ROOMS: usize = 50;
/// Nobody waits for a takeover longer than this on top of the lease of the dead.
const PROMISED: Duration = Duration::from_secs(5);
/// How long anything else may take: folding the whole log, for one.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_with_a_long_log_is_taken_over_as_fast_as_a_new_one() {
    let events = std::env::var("QIYU_TAKEOVER_EVENTS").ok().map(|number| number.parse().unwrap());
    let events = events.unwrap_or(EVENTS);
    let directory = tempfile::tempdir().unwrap();
    let (bus, _server) = start_bus(directory.path()).await;

    let (fresh, fanout, stop) = taken_over(&bus).await;
    let filled = Instant::now();
    let last = fill(&bus, events).await;
    let filled = filled.elapsed();
    until("all is folded", async || bus.position(partition()).await.unwrap_or(0) == last).await;
    until("a snapshot is there", async || snapshots(&bus).await.value.is_some()).await;
    stop.cancel();
    fanout.stopped().await;

    let (with_snapshot, fanout, stop) = taken_over(&bus).await;
    stop.cancel();
    fanout.stopped().await;
    let KvEntry { revision, .. } = snapshots(&bus).await;
    let heads = bus.bucket(BucketName::Positions);
    heads.remove_if(&format!("{}.snapshots", partition()), revision).await.unwrap();
    let (without, fanout, stop) = taken_over(&bus).await;
    stop.cancel();
    fanout.stopped().await;
    eprintln!(
        "{events} events (appended in {filled:?}): 64 empty partitions are taken over in {fresh:?}, \
         with a snapshot in {with_snapshot:?}, from the whole log in {without:?}"
    );
    assert!(with_snapshot < PROMISED, "the takeover took {with_snapshot:?}");
}

/// A worker that takes over all there is: how long until every partition is at work.
async fn taken_over(bus: &Bus) -> (Duration, Fanout, CancellationToken) {
    let stop = CancellationToken::new();
    let began = Instant::now();
    let config = Config { anchor_grace: None };
    let fanout = Fanout::start(config, bus, &mut Registry::default(), stop.clone()).await.unwrap();
    until("every partition is at work", async || fanout.ready().is_ok()).await;
    (began.elapsed(), fanout, stop)
}

fn partition() -> Partition {
    Partition::of_room(app(), RoomId::try_from(1).unwrap())
}

fn app() -> AppId {
    AppId::try_from(10_001).unwrap()
}

/// Says so much in rooms of one partition; the position of the last message.
async fn fill(bus: &Bus, events: u64) -> u64 {
    let rooms = (1..).filter_map(|id| RoomId::try_from(id).ok());
    let rooms: Vec<RoomId> =
        rooms.filter(|room| Partition::of_room(app(), *room) == partition()).take(ROOMS).collect();
    let gateway = Incarnation { id: "g1".parse().unwrap(), epoch: 1 };
    let appended = stream::iter(0..events).map(|number| {
        let room = rooms[usize::try_from(number).unwrap() % ROOMS];
        let name = format!("name-{number}");
        let sender = Sender {
            user: UserId::try_from(100_000 + number % PEOPLE).ok(),
            gateway: Some(gateway.clone()),
            connection: Some(qiyu_schema::ConnId(std::num::NonZeroU64::MIN)),
            client_msg_id: Some(name.parse().unwrap()),
        };
        let data = format!(r#"{{"roomId":{room},"type":1,"content":"message {number}"}}"#);
        let event = Event::RoomMessageSent { app: app(), room, sender, biz_code: 5555, data };
        async move {
            let subject = subject::room(app(), room, RoomKind::Msg);
            let (record, any) = (Record::at(qiyu_nats::now_ms(), event), AppendCondition::Any);
            let msg_id = bus.append(subject, &record, &name, any, APPEND_DEADLINE).await?;
            Ok::<_, qiyu_nats::log::AppendError>(msg_id.seq())
        }
    });
    let last = appended.buffer_unordered(256).try_fold(0, async |last, seq| Ok(seq.max(last)));
    last.await.unwrap()
}

async fn snapshots(bus: &Bus) -> KvEntry {
    let key = format!("{}.snapshots", partition());
    bus.bucket(BucketName::Positions).read(&key).await.unwrap()
}

async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(5)).await; // a measure, so it is looked at often
    }
}
