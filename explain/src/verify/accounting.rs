//! The conservation law: each expected delivery is acknowledged, given up, left, in flight,
//! or gone with a gateway.
//!
//! The fold knows the expected deliveries, the ledger their outcomes. Only the last hour is
//! counted, so one run an hour covers everything.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use qiyu_fanout::fold::Effect;
use qiyu_nats::{
    Bus,
    ledger_stream::{LedgerKind, LedgerRecord},
    log::LogEntry,
};
use qiyu_schema::{
    AppId, GatewayId, Incarnation, MsgId, Partition, RoomId, UserId,
    envelope::Envelope,
    event::{Event, Record, SessionChange},
    ledger::{Outcome, Via},
};
use serde::Serialize;

use super::{VerifyScope, key::Projection, rebuild::RebuiltFolds, report::Difference};

/// Age up to which messages are counted.
const ACCOUNTED_WINDOW: Duration = Duration::from_secs(3600);
/// Messages counted at most, the first ones of the hour.
const MESSAGES_MAX: usize = 500_000;
/// Envelopes read from one gateway's queue. A longer queue is far behind, and missing
/// messages are assumed to be in its rest.
const QUEUED_MAX: usize = 5_000;
/// Pause before a violation is checked a second time.
const POLL_INTERVAL: Duration = Duration::from_secs(3);
/// Violations that are named.
const BREACHES_MAX: usize = 50;

/// Deliveries expected by the last hour of the log.
pub(super) struct Accounting {
    since_ms: u64,
    /// Messages stored since then may still be under way.
    young_since_ms: u64,
    room: Option<(AppId, RoomId)>,
    expected: BTreeMap<MsgId, ExpectedDelivery>,
    direct: HashMap<MsgId, (AppId, UserId)>,
    written: u64,
    read: u64,
    /// The newest ended incarnation of each gateway.
    gone: HashMap<GatewayId, u64>,
    cut_off: bool,
}

struct ExpectedDelivery {
    place: (AppId, RoomId),
    partition: Partition,
    stored_ms: u64,
    /// Number of connections at each gateway.
    at: BTreeMap<Incarnation, u64>,
    /// Connections it was sent to again after a reassignment.
    again: u64,
}

/// The sums of one room, in connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct RoomSums {
    pub(super) app: Option<AppId>,
    pub(super) room: Option<RoomId>,
    pub(super) messages: u64,
    /// Connections of the audiences.
    pub(super) accepted: u64,
    pub(super) acknowledged: u64,
    pub(super) given_up: u64,
    pub(super) left: u64,
    pub(super) in_flight: u64,
    pub(super) gone_with_a_gateway: u64,
    /// Further deliveries, not among the accepted: by resumes and by reassignment.
    pub(super) resumed: u64,
    pub(super) taken_over: u64,
}

/// The result of the accounting.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct AccountingReport {
    pub(super) since_ms: u64,
    pub(super) rooms: Vec<RoomSums>,
    #[serde(rename = "whispers")]
    pub(super) direct: DirectSums,
    /// Whether there were more messages than are counted.
    pub(super) cut_off: bool,
    #[serde(skip)]
    pub(super) breaches: Vec<Difference>,
}

/// Sums of direct messages.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct DirectSums {
    pub(super) accepted: u64,
    pub(super) acknowledged: u64,
    pub(super) waiting: u64,
    /// Beyond the newest thousand of their recipient.
    pub(super) forgotten: u64,
}

/// The report of one gateway about one message.
#[derive(Clone, Copy, Debug, Default)]
struct ReportedSums {
    settled: bool,
    resolved: u64,
    acknowledged: u64,
    given_up: u64,
    left: u64,
    /// Connections whose outcome is reported separately.
    lagging: u64,
}

impl ReportedSums {
    fn take(&mut self, outcome: &Outcome) {
        let got = Self {
            settled: true,
            resolved: outcome.resolved.into(),
            acknowledged: outcome.acknowledged.into(),
            given_up: outcome.given_up.into(),
            left: outcome.left.into(),
            lagging: outcome.lagging.into(),
        };
        // Reported twice: the fuller one counts, because the other was a repeat
        // without recipients.
        if !self.settled || self.resolved + self.lagging < got.resolved + got.lagging {
            *self = got;
        }
    }
}

#[derive(Default)]
struct LedgerSums {
    first: HashMap<(MsgId, Incarnation), ReportedSums>,
    lagging: HashMap<(MsgId, Incarnation), ReportedSums>,
    resumed: HashMap<MsgId, u64>,
    broken: Vec<(MsgId, Incarnation)>,
    unreadable: u64,
}

impl Accounting {
    pub(super) fn new(at_ms: u64, scope: &VerifyScope) -> Self {
        let before = |span: Duration| {
            at_ms.saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
        };
        Self {
            since_ms: before(ACCOUNTED_WINDOW),
            young_since_ms: before(scope.grace),
            room: scope.room,
            expected: BTreeMap::new(),
            direct: HashMap::new(),
            written: 0,
            read: 0,
            gone: HashMap::new(),
            cut_off: false,
        }
    }

    pub(super) fn before(&mut self, _: &LogEntry, record: &Record) {
        match &record.event {
            Event::GatewayGone { gateway } => {
                let newest = self.gone.entry(gateway.id.clone()).or_default();
                *newest = (*newest).max(gateway.epoch);
            }
            Event::SessionsChanged { changes, .. } => {
                for change in changes {
                    if let SessionChange::Read { msg_ids, .. } = change {
                        let taken = msg_ids.iter().filter(|id| self.direct.remove(id).is_some());
                        self.read += u64::try_from(taken.count()).unwrap_or(0);
                    }
                }
            }
            _ => {}
        }
    }

    pub(super) fn after(
        &mut self,
        state: &super::key::PartitionState,
        entry: &LogEntry,
        effects: &[Effect],
    ) {
        if entry.written_ms < self.since_ms {
            return;
        }
        let event = entry.msg_id();
        for effect in effects {
            match effect {
                Effect::Deliver { to, envelope: Envelope::Room { app, room, from, .. } } => {
                    if self.room.is_some_and(|only| only != (*app, *room)) {
                        continue;
                    }
                    let there = state.fold.hearers(*app, *room, to, *from);
                    if self.expected.len() < MESSAGES_MAX || self.expected.contains_key(&event) {
                        let expected =
                            self.expected.entry(event).or_insert_with(|| ExpectedDelivery {
                                place: (*app, *room),
                                partition: Partition::of_room(*app, *room),
                                stored_ms: entry.written_ms,
                                at: BTreeMap::new(),
                                again: 0,
                            });
                        expected.at.insert(to.clone(), u64::try_from(there).unwrap_or(0));
                    } else {
                        self.cut_off = true;
                    }
                }
                Effect::Repeat { msg_id, connections, .. } => {
                    if let Some(expected) = self.expected.get_mut(msg_id) {
                        expected.again += u64::try_from(connections.len()).unwrap_or(0);
                    }
                }
                Effect::Deliver {
                    envelope: Envelope::Direct { app, user, msg_id, .. }, ..
                } if *msg_id == event && self.room.is_none() => {
                    self.count_direct(event, *app, *user);
                }
                Effect::KeepForLater { app, user, .. } if self.room.is_none() => {
                    self.count_direct(event, *app, *user);
                }
                _ => {}
            }
        }
    }

    fn count_direct(&mut self, msg_id: MsgId, app: AppId, user: UserId) {
        if self.direct.insert(msg_id, (app, user)).is_none() {
            self.written += 1;
        }
    }

    /// Compares the expected deliveries with the ledger, twice if they do not match.
    pub(super) async fn hold(
        &self,
        bus: &Bus,
        rebuilt: &RebuiltFolds,
    ) -> anyhow::Result<AccountingReport> {
        let first = self.look(bus, rebuilt).await?;
        if first.breaches.is_empty() {
            return Ok(first);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        self.look(bus, rebuilt).await
    }

    async fn look(&self, bus: &Bus, rebuilt: &RebuiltFolds) -> anyhow::Result<AccountingReport> {
        let ledger = self.read_ledger(bus).await?;
        let mut report = AccountingReport {
            since_ms: self.since_ms,
            cut_off: self.cut_off,
            direct: self.direct_sums(rebuilt),
            ..AccountingReport::default()
        };
        let mut rooms: BTreeMap<(AppId, RoomId), RoomSums> = BTreeMap::new();
        let mut open: BTreeMap<Incarnation, Vec<MsgId>> = BTreeMap::new();
        for (msg_id, expected) in &self.expected {
            let sums = rooms.entry(expected.place).or_default();
            sums.messages += 1;
            sums.taken_over += expected.again;
            sums.resumed += ledger.resumed.get(msg_id).copied().unwrap_or(0);
            for (gateway, there) in &expected.at {
                sums.accepted += there;
                let place = (*msg_id, gateway.clone());
                let lagging = ledger.lagging.get(&place).copied().unwrap_or_default();
                let Some(got) = ledger.first.get(&place).copied() else {
                    match self.is_gone(gateway) {
                        true => sums.gone_with_a_gateway += there,
                        false => {
                            sums.in_flight += there;
                            if self.is_old(expected) {
                                open.entry(gateway.clone()).or_default().push(*msg_id);
                            }
                        }
                    }
                    continue;
                };
                // An older build's outcome does not count lagging
                // connections.
                let apart = got.lagging.max(lagging.resolved);
                if *there < got.resolved + apart {
                    report.breach(*msg_id, format!(
                        "gateway {gateway} sent it to {} connections, and the log knows {there} there",
                        got.resolved + apart
                    ));
                }
                sums.acknowledged += got.acknowledged + lagging.acknowledged;
                sums.given_up += got.given_up + lagging.given_up;
                // Connections that the log still had at the gateway, and
                // the gateway had not.
                let gone_before = there.saturating_sub(got.resolved + apart);
                sums.left += got.left + lagging.left + gone_before;
                let pending = apart.saturating_sub(lagging.resolved);
                match self.is_gone(gateway) {
                    true => sums.gone_with_a_gateway += pending,
                    false => sums.in_flight += pending,
                }
            }
        }
        if 0 < ledger.unreadable {
            report.breach_of(
                "the ledger".to_owned(),
                format!("{} of its entries cannot be read by this build", ledger.unreadable),
            );
        }
        for (msg_id, gateway) in ledger.broken {
            let words = "resolved is not acknowledged, given up and left together";
            report.breach(
                msg_id,
                format!("the outcome of gateway {gateway} contradicts itself: {words}"),
            );
        }
        for (gateway, msg_ids) in open {
            self.find_lost(bus, &gateway, msg_ids, &mut report).await?;
        }
        let named = |((app, room), sums)| RoomSums { app: Some(app), room: Some(room), ..sums };
        report.rooms = rooms.into_iter().map(named).collect();
        Ok(report)
    }

    /// Reports messages that have neither an outcome nor a place in their gateway's
    /// queue.
    async fn find_lost(
        &self,
        bus: &Bus,
        gateway: &Incarnation,
        msg_ids: Vec<MsgId>,
        report: &mut AccountingReport,
    ) -> anyhow::Result<()> {
        let queued = bus.queued_messages(gateway, QUEUED_MAX).await?;
        if QUEUED_MAX <= queued.len() {
            return Ok(());
        }
        for msg_id in msg_ids.into_iter().filter(|msg_id| !queued.contains(msg_id)) {
            let Some(expected) = self.expected.get(&msg_id) else { continue };
            // The owner may not have reached it yet.
            if msg_id.seq() <= bus.position(expected.partition).await? {
                report.breach(msg_id, format!(
                    "it was handed to gateway {gateway}, which has it no more and reported nothing"
                ));
            }
        }
        Ok(())
    }

    fn is_gone(&self, gateway: &Incarnation) -> bool {
        self.gone.get(&gateway.id).is_some_and(|gone| gateway.epoch <= *gone)
    }

    fn is_old(&self, expected: &ExpectedDelivery) -> bool {
        expected.stored_ms < self.young_since_ms
    }

    fn direct_sums(&self, rebuilt: &RebuiltFolds) -> DirectSums {
        let waits = |(msg_id, (app, user)): (&MsgId, &(AppId, UserId))| {
            let state = rebuilt.state(Partition::of_user(*app, *user));
            state.is_some_and(|state| state.fold.waits(*app, *user, *msg_id))
        };
        let waiting = self.direct.iter().filter(|whisper| waits(*whisper)).count();
        let waiting = u64::try_from(waiting).unwrap_or(0);
        let (accepted, acknowledged) = (self.written, self.read);
        let forgotten = accepted.saturating_sub(acknowledged + waiting);
        DirectSums { accepted, acknowledged, waiting, forgotten }
    }

    async fn read_ledger(&self, bus: &Bus) -> anyhow::Result<LedgerSums> {
        let mut ledger = LedgerSums::default();
        let mut reader =
            bus.read_ledger(&[LedgerKind::Outcomes, LedgerKind::Resumes], self.since_ms).await?;
        while let Some(entry) = reader.next().await? {
            let LedgerRecord::Outcomes(batch) = entry.record else { continue };
            for outcome in batch.outcomes.iter().filter(|o| self.expected.contains_key(&o.msg_id)) {
                let place = (outcome.msg_id, batch.gateway.clone());
                let parts = u64::from(outcome.acknowledged)
                    + u64::from(outcome.given_up)
                    + u64::from(outcome.left);
                if u64::from(outcome.resolved) != parts {
                    ledger.broken.push(place.clone());
                }
                match outcome.via {
                    Via::Envelope | Via::Log => {
                        ledger.first.entry(place).or_default().take(outcome)
                    }
                    Via::Lagging => ledger.lagging.entry(place).or_default().take(outcome),
                    Via::Resume => {
                        let resumed = ledger.resumed.entry(outcome.msg_id).or_default();
                        *resumed += u64::from(outcome.resolved);
                    }
                    Via::Repeat | Via::Late | Via::Other => {}
                }
            }
        }
        ledger.unreadable = reader.unreadable();
        reader.close().await;
        Ok(ledger)
    }
}

impl AccountingReport {
    fn breach(&mut self, msg_id: MsgId, words: String) {
        let words = format!("{words} (qiyu trace {msg_id} tells the rest)");
        self.breach_of(format!("message {msg_id}"), words);
    }

    fn breach_of(&mut self, key: String, words: String) {
        if self.breaches.len() < BREACHES_MAX {
            self.breaches.push(Difference {
                projection: Projection::Conservation,
                key,
                live: Some(words),
                log: None,
                detail: None,
                parted: None,
            });
        }
    }
}
