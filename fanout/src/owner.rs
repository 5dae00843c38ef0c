//! The owner of one partition: reads events, applies them, dispatches the effects,
//! records the position.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use qiyu_nats::{
    Bus,
    bucket::BucketError,
    chain,
    lease::Lease,
    log::{DeadLetterReason, LogEntry, LogReader, ReadError},
    position::{self, Claim, Position},
    service::CommandService,
    stream::BucketName,
    trace_context::TraceContext,
};
use qiyu_schema::{
    AppId, Partition, RoomId,
    codec::{self, DecodeError},
    command::{CloseAbandoned, LIVING_GROUP, ListMembers, ListPendingMessages, Members},
    event::Event,
    ledger::{Dispatch, DispatchKind},
    subject,
};
use tokio::{
    sync::Mutex,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info};

use crate::{
    deliver::{Deliverer, WINDOW},
    fold::{Effect, Fold},
    handovers::Handovers,
    heat::Heat,
    lag::Lag,
    metrics::Metrics,
    query::{Question, answer_questions},
    snapshot::{self, LoadError, SNAPSHOT_EVENTS, SNAPSHOT_EVERY},
    viewers::Viewers,
    worker::ACT_FOR,
};

/// How often the position is recorded, if it has moved.
const RECORD_EVERY: Duration = Duration::from_millis(100);
/// And after how many events at the latest: a successor repeats at most these, in order.
const RECORD_EVENTS: u64 = 256;
/// A lag below this is not reported.
const LAG_TOLD_FROM: Duration = Duration::from_millis(250);
/// Pause between attempts to reopen the log reader.
const REOPEN_EVERY: Duration = Duration::from_millis(200);
/// How long a room's closing may take before the other chores go on.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// Members in one answer.
const MEMBERS_MAX: usize = 1000;
/// Abandoned rooms closed in one go.
const CLOSE_MAX: usize = 16;
/// How long a release waits for unconfirmed envelopes. Longer than an election.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(10);

/// Why an owner stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// It was released, with every envelope stored and the position recorded.
    #[error("handed over")]
    HandedOver,
    /// The worker's lease is too old to act on.
    #[error("the worker's lease was not renewed in time")]
    Fenced,
    /// Another owner records positions of this partition.
    #[error("another owner has recorded a position")]
    Superseded,
    /// The log could not be read on.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The fold could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The log returned fewer events than the recorded position requires.
    #[error("the log of {partition} was not read up to its recorded position {recorded}")]
    Incomplete { partition: Partition, recorded: u64 },
    /// The recorded position is of a newer build.
    #[error("read the recorded position")]
    Unreadable(#[from] DecodeError),
    /// The query endpoint could not be started.
    #[error("listen for questions")]
    Questions(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The position could not be read or written.
    #[error(transparent)]
    Position(#[from] BucketError),
}

/// A partition loaded for a new owner: its fold as of `folded`, which may lie before `recorded`.
pub(crate) struct Prepared {
    pub(crate) partition: Partition,
    pub(crate) fold: Fold,
    /// The position of its snapshot; 0: there is none.
    base: u64,
    /// The last event in the fold.
    pub(crate) folded: u64,
    /// The last event whose effects are known to be out.
    pub(crate) recorded: u64,
    revision: u64,
}

/// Reads the recorded position of a partition, and the newest snapshot before it.
pub(crate) async fn prepare(bus: &Bus, partition: Partition) -> Result<Prepared, End> {
    let slot = bus.bucket(BucketName::Positions).read(&position::key(partition)).await?;
    let recorded = match slot.value.as_deref().map(codec::decode::<Position>) {
        None => 0,
        Some(position) => position?.seq, // as 0 it would deliver everything anew
    };
    let (base, fold) = snapshot::load(bus, partition, recorded).await?;
    let (folded, revision) = (base, slot.revision);
    Ok(Prepared { partition, fold, base, folded, recorded, revision })
}

/// Brings folds up to their recorded positions. All through one consumer with
/// many filters (none, where all are behind): measured four times cheaper than
/// one consumer each.
pub(crate) async fn catch_up(bus: &Bus, prepared: &mut [Prepared]) -> Result<(), End> {
    let behind: Vec<&mut Prepared> =
        prepared.iter_mut().filter(|p| p.folded < p.recorded).collect();
    let Some(from) = behind.iter().map(|p| p.folded).min() else { return Ok(()) };
    let until = behind.iter().map(|p| p.recorded).max().unwrap_or(from);
    let partitions: Vec<Partition> = behind.iter().map(|p| p.partition).collect();
    let filters = subject::partitions(&partitions);
    let mut by_partition: HashMap<Partition, &mut Prepared> =
        behind.into_iter().map(|p| (p.partition, p)).collect();
    let mut reader = bus.read_log(filters, from, None).await?;
    while by_partition.values().any(|p| p.folded < p.recorded) {
        let Ok(entry) = timeout(CATCH_UP_PATIENCE, reader.next()).await else {
            break;
        };
        let entry = entry?;
        if let Some(p) = entry.partition().and_then(|partition| by_partition.get_mut(&partition))
            && p.folded < entry.seq
            && entry.seq <= p.recorded
        {
            if let Ok(record) = entry.record() {
                p.fold.apply(entry.msg_id(), record); // its effects are out
            }
            p.folded = entry.seq;
        }
        if until <= entry.seq {
            break; // every fold has its position
        }
    }
    // A fold that has not seen the recorded event itself has missed events,
    // unless the log no longer holds that event.
    let (first, _) = bus.log_bounds().await?;
    for p in by_partition.into_values().filter(|p| p.folded < p.recorded) {
        if first <= p.recorded {
            return Err(End::Incomplete { partition: p.partition, recorded: p.recorded });
        }
        p.folded = p.recorded;
    }
    Ok(())
}

/// How long the next event may take while catching up.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(5);

/// The dependencies that all owners of a process share.
#[derive(Clone)]
pub(crate) struct Means {
    pub(crate) metrics: Metrics,
    pub(crate) heat: Heat,
    pub(crate) tasks: TaskTracker,
    pub(crate) answering: CommandService,
    pub(crate) handovers: Handovers,
    /// How long an anchor may be absent. `None`: without limit.
    pub(crate) anchor_grace: Option<Duration>,
}

/// Owns one partition until it has to stop.
pub(crate) struct Owner {
    bus: Bus,
    partition: Partition,
    claim: Claim,
    lease: Lease,
    metrics: Metrics,
    heat: Heat,
    tasks: TaskTracker,
    answering: CommandService,
    deliverer: Deliverer,
    viewers: Arc<Mutex<Viewers>>,
    anchor_grace: Option<Duration>,
    telling: Option<JoinHandle<()>>,
    fold: Fold,
    folded: u64,
    /// The latest time in any of its events: the only clock of the fold.
    folded_ms: u64,
    recorded: u64,
    revision: u64,
    /// For each unconfirmed effect, in order, the event before the one it belongs
    /// to: everything up to there is confirmed once this is the first.
    open: VecDeque<u64>,
    under_way: FuturesOrdered<BoxFuture<'static, ()>>,
    lag: Lag,
    lag_told: bool,
    events_since_snapshot: u64,
    snapshot_time: Instant,
    /// A copy of the fold, and where: written once that is recorded, because a
    /// successor could not start from anything newer.
    snapshot: Option<(u64, Fold)>,
}

impl Owner {
    pub(crate) fn new(
        bus: &Bus,
        prepared: Prepared,
        claim: Claim,
        lease: Lease,
        means: Means,
    ) -> Self {
        let Means { metrics, heat, tasks, answering, handovers, anchor_grace } = means;
        let Prepared { partition, mut fold, base, folded, recorded, revision } = prepared;
        fold.stir_all();
        let (bus, counting) = (bus.clone(), metrics.clone());
        Self {
            deliverer: Deliverer::new(bus.clone(), partition, counting, handovers),
            viewers: Arc::new(Mutex::new(Viewers::new(&bus))),
            anchor_grace,
            telling: None,
            bus,
            partition,
            claim,
            lease,
            metrics,
            heat,
            tasks,
            answering,
            fold,
            folded: folded.max(recorded),
            folded_ms: 0,
            recorded,
            revision,
            open: VecDeque::new(),
            under_way: FuturesOrdered::new(),
            lag: Lag::default(),
            lag_told: false,
            // Events applied since the snapshot count: otherwise the state of a
            // partition that falls quiet now would expire with its log.
            events_since_snapshot: recorded.saturating_sub(base),
            snapshot_time: Instant::now(),
            snapshot: None,
        }
    }

    /// Runs until `hand_over` is cancelled or the owner must stop acting.
    pub(crate) async fn run(mut self, hand_over: CancellationToken) -> End {
        let owned = self.own(hand_over).await;
        self.metrics.has_left(self.partition);
        match owned {
            Ok(()) => End::HandedOver,
            Err(end) => end,
        }
    }

    async fn own(&mut self, hand_over: CancellationToken) -> Result<(), End> {
        // Only the owner of the partition answers queries about it.
        let asked = CancellationToken::new();
        let _until_here = asked.clone().drop_guard();
        let (partition, deliverer) = (self.partition, &self.deliverer);
        let mut questions = answer_questions(&self.answering, partition, deliverer, &asked)
            .await
            .map_err(End::Questions)?;
        let filter = vec![subject::partition(self.partition)];
        let mut reader = self.bus.read_log(filter, self.recorded, None).await?;
        let mut record = interval(RECORD_EVERY);
        let mut tell = interval(Duration::from_secs(1));
        for timer in [&mut record, &mut tell] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                biased;
                () = hand_over.cancelled() => break, // first: a successor waits for the release
                Some(()) = self.under_way.next(), if !self.under_way.is_empty() => {
                    self.open.pop_front(); // confirmed work makes room for new work
                    self.lag.under_way(!self.open.is_empty(), true);
                }
                _ = record.tick() => {
                    self.check_lease()?;
                    self.record().await?;
                    self.consider_snapshot();
                }
                Some(question) = questions.recv() => self.answer(question),
                _ = tell.tick() => {
                    self.do_chores();
                    self.tell_lag().await;
                }
                entry = read(&mut reader), if self.under_way.len() < WINDOW => {
                    self.check_lease()?;
                    let entry = match entry {
                        Ok(entry) => entry,
                        Err(error) => {
                            // The fold is where it is: read on from there.
                            info!(partition = %self.partition, error = %chain(&error), "reading the log anew");
                            self.metrics.restarts.inc();
                            reader = self.reopened().await?;
                            continue;
                        }
                    };
                    self.take(entry, reader.take_trace_context()).await;
                    if RECORD_EVENTS <= self.confirmed().saturating_sub(self.recorded) {
                        self.record().await?;
                    }
                }
            }
        }
        self.finish().await
    }

    /// Opens a reader after the last applied event, and retries until it succeeds.
    async fn reopened(&mut self) -> Result<LogReader, End> {
        loop {
            self.check_lease()?;
            let filter = vec![subject::partition(self.partition)];
            match self.bus.read_log(filter, self.folded, None).await {
                Ok(reader) => return Ok(reader),
                Err(error) => {
                    debug!(partition = %self.partition, error = %chain(&error), "log not reopened yet")
                }
            }
            tokio::time::sleep(REOPEN_EVERY).await;
        }
    }

    fn answer(&self, question: Question) {
        // The caller may have stopped waiting.
        match question {
            Question::Sent { app, namespace, name, answer } => {
                let now_ms = qiyu_nats::now_ms();
                answer.send(self.fold.find_sent(app, namespace, &name, now_ms)).ok();
            }
            Question::Members { asked, answer } => {
                let ListMembers { app, room, after, limit } = asked;
                let limit = usize::try_from(limit).unwrap_or(1).clamp(1, MEMBERS_MAX);
                let (mut users, total) = self.fold.members(app, room, after, limit + 1);
                let has_next = limit < users.len();
                users.truncate(limit);
                let total = u64::try_from(total).unwrap_or(u64::MAX);
                answer.send(Members { users, total, has_next }).ok();
            }
            Question::Copy { answer } => drop(answer.send((self.folded, self.fold.clone()))),
            Question::Pending { asked, answer } => {
                let ListPendingMessages { app, user, after, limit } = asked;
                let limit = usize::try_from(limit).unwrap_or(1).clamp(1, 100);
                answer.send(self.fold.waiting(app, user, after, limit)).ok();
            }
        }
    }

    async fn take(&mut self, entry: LogEntry, trace_context: Option<TraceContext>) {
        self.metrics.events.inc();
        self.lag.read(&entry, qiyu_nats::now_ms());
        let msg_id = entry.msg_id();
        let effects = match entry.record() {
            Ok(record) => {
                self.folded_ms = self.folded_ms.max(record.at_ms);
                if let Event::RoomMessageSent { app, room, .. } = &record.event {
                    self.heat.count(*app, *room);
                }
                let is_message = is_message(&record.event);
                let effects = self.fold.apply(msg_id, record);
                if is_message && !effects.iter().flatten().any(is_delivery) {
                    let (to, kind, cause) = (None, DispatchKind::NoRecipient, None);
                    self.deliverer.handovers.note(Dispatch { msg_id, to, kind, cause });
                }
                effects
            }
            Err(error) => {
                error!(%msg_id, subject = %entry.subject, error = %chain(&error), "undecodable event set aside");
                self.metrics.dead.inc();
                self.bus.dead_letter(&entry, DeadLetterReason::Decode).await;
                Some(Vec::new())
            }
        };
        let before = std::mem::replace(&mut self.folded, entry.seq);
        self.events_since_snapshot += 1;
        let Some(effects) = effects else {
            error!(%msg_id, subject = %entry.subject, "event of a newer kind set aside; upgrade qiyu");
            self.metrics.dead.inc();
            self.bus.dead_letter(&entry, DeadLetterReason::UnknownKind).await;
            return;
        };
        for effect in effects {
            for pending in self.deliverer.begin(msg_id, effect, trace_context.as_ref()).await {
                self.open.push_back(before);
                self.under_way.push_back(pending.boxed());
            }
        }
        self.lag.under_way(!self.open.is_empty(), false);
    }

    /// Starts the periodic work of each second. It is not awaited, because it must
    /// not delay envelopes; the next run waits until the last one is done.
    fn do_chores(&mut self) {
        if self.telling.as_ref().is_some_and(|telling| !telling.is_finished()) {
            return;
        }
        let changed = self.fold.take_stirred();
        let counts = Viewers::of(&self.fold, changed);
        let (bus, viewers) = (self.bus.clone(), Arc::clone(&self.viewers));
        let deliverer = self.deliverer.clone();
        let abandoned = self.abandoned();
        self.telling = Some(self.tasks.spawn(async move {
            viewers.lock().await.tell(&bus, counts).await;
            deliverer.offer_skipped().await;
            close_abandoned(&bus, abandoned).await;
        }));
    }

    /// Returns rooms to close because their anchor did not return. The fold is
    /// queried each second, so the current owner of the partition closes them.
    fn abandoned(&self) -> Vec<(AppId, RoomId)> {
        let Some(grace) = self.anchor_grace else { return Vec::new() };
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let since_ms = qiyu_nats::now_ms().saturating_sub(grace_ms);
        self.fold.abandoned(since_ms).take(CLOSE_MAX).collect()
    }

    /// Reports the lag once a second while behind, and once more when that is over.
    async fn tell_lag(&mut self) {
        let behind = self.lag.behind();
        self.metrics.is_behind(self.partition, behind);
        let worth_telling = LAG_TOLD_FROM <= behind;
        if worth_telling || self.lag_told {
            self.bus.report_lag(self.partition, behind).await;
        }
        self.lag_told = worth_telling;
    }

    /// Returns the last event up to which every envelope is confirmed. It is always
    /// an event of this partition: a catch-up waits to see the recorded event itself.
    fn confirmed(&self) -> u64 {
        self.open.front().copied().unwrap_or(self.folded)
    }

    async fn record(&mut self) -> Result<(), End> {
        let seq = self.confirmed();
        if seq <= self.recorded {
            return Ok(());
        }
        let value = codec::encode(&Position { seq, by: self.claim.clone() });
        let value: Bytes = value.expect("plain data encodes");
        let bucket = self.bus.bucket(BucketName::Positions);
        match bucket.set_if(&position::key(self.partition), self.revision, value, None).await {
            Ok(revision) => (self.revision, self.recorded) = (revision, seq),
            Err(BucketError::Conflict { .. }) => return Err(End::Superseded),
            // Not recorded is only not recorded yet. If it was after all, the next
            // attempt is refused and we start again from where it says.
            Err(error) => {
                debug!(partition = %self.partition, error = %chain(&error), "position not recorded")
            }
        }
        Ok(())
    }

    fn check_lease(&self) -> Result<(), End> {
        let holds = self.lease.age() < ACT_FOR && !self.lease.lost().is_cancelled();
        if holds { Ok(()) } else { Err(End::Fenced) }
    }

    fn consider_snapshot(&mut self) {
        let due = SNAPSHOT_EVENTS <= self.events_since_snapshot
            || 0 < self.events_since_snapshot && SNAPSHOT_EVERY <= self.snapshot_time.elapsed();
        if due && self.snapshot.is_none() {
            self.events_since_snapshot = 0;
            self.snapshot_time = Instant::now();
            self.fold.forget(self.folded_ms);
            self.snapshot = Some((self.folded, self.fold.clone()));
        }
        let recorded = self.recorded;
        if let Some((position, fold)) = self.snapshot.take_if(|(at, _)| *at <= recorded) {
            let (bus, metrics) = (self.bus.clone(), self.metrics.clone());
            // Off the loop: encoding a large room must not delay its messages.
            self.tasks.spawn(snapshot::save(bus, self.partition, position, fold, metrics));
        }
    }

    async fn finish(&mut self) -> Result<(), End> {
        let waited = async {
            while self.under_way.next().await.is_some() {
                self.open.pop_front();
            }
        };
        if tokio::time::timeout(HAND_OVER_PATIENCE, waited).await.is_err() {
            debug!(partition = %self.partition, "handed over with envelopes unconfirmed");
        }
        self.check_lease()?;
        self.record().await
    }
}

fn is_message(event: &Event) -> bool {
    matches!(event, Event::RoomMessageSent { .. } | Event::DirectMessageSent { .. })
}

fn is_delivery(effect: &Effect) -> bool {
    matches!(effect, Effect::Deliver { .. })
}

/// Closes abandoned rooms. One that could not be closed is retried in a second.
async fn close_abandoned(bus: &Bus, rooms: Vec<(AppId, RoomId)>) {
    for (app, room) in rooms {
        match bus
            .request_with_timeout(LIVING_GROUP, &CloseAbandoned { app, room }, CLOSE_PATIENCE)
            .await
        {
            Ok(()) => info!(%app, %room, "the anchor is gone for too long, room closed"),
            Err(error) => {
                return debug!(%app, %room, error = %chain(&error), "abandoned room not closed yet");
            }
        }
    }
}

/// Reads the next entry. Cancel-safe: an entry taken from the reader is returned at once.
async fn read(reader: &mut LogReader) -> Result<LogEntry, ReadError> {
    reader.next().await
}
