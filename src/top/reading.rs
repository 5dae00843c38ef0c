//! One look at everybody.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use qiyu_nats::{
    Bus,
    stream::BucketName,
    vitals::{HotRoom, Vitals},
};
use qiyu_presence::{GatewayView, Gateways};
use qiyu_schema::{
    AppId, RoomId, codec,
    room::{self, RoomCounts},
};

/// How long everybody has to answer. Over loopback a millisecond is enough.
const PATIENCE: Duration = Duration::from_millis(400);
/// Rooms shown.
const ROOMS_SHOWN: usize = 10;

/// What everybody said at one moment.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// By name, then by process.
    pub(crate) vitals: Vec<Vitals>,
    /// Gateways with a lease, whether or not they answered.
    pub(crate) leased: Vec<GatewayView>,
    /// The last position of the log, and when it was that. `None`: it does not answer.
    pub(crate) log: Option<u64>,
    pub(crate) log_read: Option<Instant>,
    /// Hottest first, with the users inside.
    pub(crate) rooms: Vec<(HotRoom, Option<u64>)>,
}

impl Reading {
    pub(crate) async fn take(bus: &Bus, gateways: &Gateways) -> anyhow::Result<Self> {
        let vitals = bus.query_vitals(PATIENCE).await.map_err(|error| anyhow!(error));
        let mut vitals = vitals.context("ask everybody how they are")?;
        vitals.sort_by(|a, b| (&a.name, a.process).cmp(&(&b.name, b.process)));
        let mut leased = gateways.live();
        leased.sort_by(|a, b| a.incarnation.id.as_str().cmp(b.incarnation.id.as_str()));
        let log = bus.log_bounds().await.ok().map(|(_, last)| last);
        let log_read = Some(Instant::now());
        let mut rooms = Vec::new();
        for hot in hottest(&vitals) {
            let inside = inside(bus, hot.app, hot.room).await;
            rooms.push((hot, inside));
        }
        Ok(Self { vitals, leased, log, log_read, rooms })
    }

    /// Events a second since `before`.
    pub(crate) fn log_rate(&self, before: Option<&Self>) -> Option<f64> {
        let before = before?;
        let took = self.log_read?.saturating_duration_since(before.log_read?).as_secs_f64();
        Some(self.log?.saturating_sub(before.log?) as f64 / took.max(f64::MIN_POSITIVE))
    }

    /// Whether nobody is there.
    pub(crate) fn is_empty(&self) -> bool {
        self.vitals.is_empty()
    }

    /// What a process said in this reading.
    pub(crate) fn of(&self, process: u64) -> Option<&Vitals> {
        self.vitals.iter().find(|vitals| vitals.process == process)
    }
}

/// Of all workers together: a room's partition may just have moved.
fn hottest(vitals: &[Vitals]) -> Vec<HotRoom> {
    let mut sums: HashMap<(AppId, RoomId), f64> = HashMap::new();
    for hot in vitals.iter().filter_map(|v| v.fanout.as_ref()).flat_map(|fanout| &fanout.rooms) {
        *sums.entry((hot.app, hot.room)).or_default() += hot.per_second;
    }
    let hot = |((app, room), per_second)| HotRoom { app, room, per_second };
    let mut rooms: Vec<HotRoom> = sums.into_iter().map(hot).collect();
    rooms.sort_by(|a, b| b.per_second.total_cmp(&a.per_second).then(a.room.cmp(&b.room)));
    rooms.truncate(ROOMS_SHOWN);
    rooms
}

/// Users inside a room; `None` when that is not to be had.
async fn inside(bus: &Bus, app: AppId, room: RoomId) -> Option<u64> {
    let slot = bus.bucket(BucketName::Watch).read(&room::key(app, room)).await.ok()?;
    Some(codec::decode::<RoomCounts>(&slot.value?).ok()?.watch_num)
}
