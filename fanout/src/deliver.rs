//! Carries out the effects of the fold.
//!
//! First attempts are made in order; confirmations are awaited behind, up to
//! [`WINDOW`] at once. A repeated attempt may overtake: the envelope's `prev`
//! lets the gateway put things in order again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use parking_lot::Mutex;
use qiyu_nats::{
    Bus, chain, outbox::EnqueueError, stream::OUTBOX_AGE_MAX, trace_context::TraceContext,
};
use qiyu_schema::{
    AppId, ConnId, Incarnation, MsgId, Partition, RoomId, UserId, codec,
    envelope::{DirectTarget, Envelope},
    event::Event,
    ledger::{Dispatch, DispatchKind},
};
use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::{fold::Effect, handovers::Handovers, metrics::Metrics};

/// Envelopes on their way at once, per partition. Awaiting each before the
/// next costs a factor of eight (measured: 4.5k/s against 36k/s).
pub(crate) const WINDOW: usize = 256;

/// First pause between attempts; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Last pause between attempts.
const RETRY_MAX: Duration = Duration::from_millis(500);

/// Waiting messages read from the log at once.
const READS_AT_ONCE: usize = 32;

/// Something under way; resolves when it is stored, or is known never to be.
pub(crate) type Pending = BoxFuture<'static, ()>;

/// Carries out effects of one partition.
#[derive(Clone)]
pub(crate) struct Deliverer {
    pub(crate) bus: Bus,
    pub(crate) partition: Partition,
    pub(crate) metrics: Metrics,
    pub(crate) handovers: Handovers,
    skipped: Arc<Mutex<HashMap<(Incarnation, About), Skipped>>>,
}

/// The room or user within which envelopes are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum About {
    Room(AppId, RoomId),
    User(AppId, UserId),
}

/// The newest envelope a full queue has not taken. Its `prev` leads a gateway
/// to all that was skipped before it.
struct Skipped {
    msg_id: MsgId,
    bytes: Bytes,
    suffix: String,
    since: Instant,
}

impl Deliverer {
    pub(crate) fn new(
        bus: Bus,
        partition: Partition,
        metrics: Metrics,
        handovers: Handovers,
    ) -> Self {
        Self { bus, partition, metrics, handovers, skipped: Arc::default() }
    }

    /// Offers full queues again what they have not taken: without it a room
    /// that falls silent would never show its gateway that something is missing.
    pub(crate) async fn offer_skipped(&self) {
        let offers: Vec<((Incarnation, About), MsgId, Bytes, String)> = {
            let mut skipped = self.skipped.lock();
            // Older than any envelope may get, its gateway is gone or its people resume.
            skipped.retain(|_, skipped| skipped.since.elapsed() < OUTBOX_AGE_MAX);
            let offer = |(key, s): (&(Incarnation, About), &Skipped)| {
                (key.clone(), s.msg_id, s.bytes.clone(), s.suffix.clone())
            };
            skipped.iter().map(offer).collect()
        };
        for (key, msg_id, bytes, suffix) in offers {
            if attempt(&self.bus, &key.0, msg_id, bytes, &suffix).await.is_ok() {
                let mut skipped = self.skipped.lock();
                if skipped.get(&key).is_some_and(|newest| newest.msg_id <= msg_id) {
                    skipped.remove(&key);
                }
            }
        }
    }

    /// Begins to carry out `effect` of the event at `msg_id`.
    pub(crate) async fn begin(
        &self,
        msg_id: MsgId,
        effect: Effect,
        trace_context: Option<&TraceContext>,
    ) -> Vec<Pending> {
        match effect {
            Effect::Deliver { to, envelope } => {
                let suffix = match &envelope {
                    // Several connections may come late to one closing.
                    Envelope::RoomClosed { late, .. } if !late.is_empty() => format!(":l{msg_id}"),
                    _ => String::new(),
                };
                let id = envelope.msg_id().unwrap_or(msg_id);
                let ids = (id, msg_id);
                self.hand_over(to, ids, &envelope, suffix, trace_context)
                    .await
                    .into_iter()
                    .collect()
            }
            Effect::DeliverWaiting { to, app, user, connection, msg_ids } => {
                self.hand_over_waiting(to, (app, user, connection), &msg_ids, msg_id).await
            }
            Effect::Repeat { to, app, room, msg_id: repeated, sends, connections } => {
                let deliverer = self.clone();
                // In the background: a repeat has no place of its own in the order.
                let work = async move {
                    deliverer.repeat(to, app, room, (repeated, sends), connections, msg_id).await;
                };
                vec![work.boxed()]
            }
            Effect::KeepForLater { app, user, biz_code, data } => {
                let bus = self.bus.clone();
                let keep = async move {
                    keep_trying("message not copied to the inbox", || {
                        bus.copy_to_inbox(app, user, msg_id, biz_code, &data)
                    })
                    .await;
                };
                vec![keep.boxed()]
            }
            Effect::KeepUnread { app, user, msg_ids } => {
                let deliverer = self.clone();
                let keep = async move {
                    let contents = deliverer.contents(app, user, &msg_ids).await;
                    let bus = &deliverer.bus;
                    for (msg_id, (biz_code, data)) in contents {
                        keep_trying("message not copied to the inbox", || {
                            bus.copy_to_inbox(app, user, msg_id, biz_code, &data)
                        })
                        .await;
                    }
                };
                vec![keep.boxed()]
            }
            Effect::NothingWaits { app, user } => {
                let bus = self.bus.clone();
                let emptied = async move {
                    if let Err(error) = bus.purge_inbox(app, user, msg_id).await {
                        warn!(%user, error = %chain(&error), "inbox not emptied, its messages end with their age");
                    }
                };
                vec![emptied.boxed()]
            }
            Effect::CameOnline { app, user } => vec![self.fact(msg_id, app, user, "online")],
            Effect::WentOffline { app, user } => vec![self.fact(msg_id, app, user, "offline")],
        }
    }

    /// Sends a room message again, because of the event at `because`.
    async fn repeat(
        &self,
        to: Incarnation,
        app: AppId,
        room: RoomId,
        (msg_id, sends): (MsgId, u32),
        connections: Vec<ConnId>,
        because: MsgId,
    ) {
        let entry = keep_trying("log not read", || self.bus.read_one(msg_id)).await;
        let Some(Ok(record)) = entry.map(|entry| entry.record()) else {
            warn!(%room, %msg_id, "the log has forgotten what is to be repeated");
            return;
        };
        let Event::RoomMessageSent { sender, biz_code, data, .. } = record.event else { return };
        let envelope = Envelope::Repeat {
            app,
            room,
            msg_id,
            sends,
            from: sender.user,
            biz_code,
            data,
            to: connections,
        };
        // Unlike the first copy's key, and unlike that of a repeat for another reason.
        let suffix = format!(":r{because}");
        let ids = (msg_id, because);
        if let Some(pending) = self.hand_over(to, ids, &envelope, suffix, None).await {
            pending.await;
        }
    }

    /// Starts the first attempt in order, and returns what finishes the job.
    /// `because`: the event that asks for it, which may be the message itself.
    async fn hand_over(
        &self,
        to: Incarnation,
        (msg_id, because): (MsgId, MsgId),
        envelope: &Envelope,
        suffix: String,
        trace_context: Option<&TraceContext>,
    ) -> Option<Pending> {
        let mut span = self.bus.start_span("fan out", trace_context);
        span.set_attribute("qiyu.partition", || self.partition.to_string());
        span.set_attribute("qiyu.gateway", || to.to_string());
        let trace_context = span.trace_context();
        let bytes = match codec::encode(envelope) {
            Ok(bytes) => bytes,
            Err(error) => {
                error!(%msg_id, error = %chain(&error), "envelope not encoded");
                return None;
            }
        };
        self.metrics.envelopes.inc();
        let started = Instant::now();
        let first =
            self.bus.enqueue(&to, msg_id, bytes.clone(), &suffix, trace_context.as_ref()).await;
        let about = match *envelope {
            Envelope::Room { app, room, .. }
            | Envelope::RoomClosed { app, room, .. }
            | Envelope::Repeat { app, room, .. } => Some(About::Room(app, room)),
            Envelope::Direct { app, user, .. } => Some(About::User(app, user)),
            Envelope::Unknown => None,
        };
        let (bus, metrics, partition) = (self.bus.clone(), self.metrics.clone(), self.partition);
        let (all_skipped, handovers) = (Arc::clone(&self.skipped), self.handovers.clone());
        let cause = Some(because).filter(|cause| *cause != msg_id);
        let note = move |to: &Incarnation, kind| {
            handovers.note(Dispatch { msg_id, to: Some(to.clone()), kind, cause });
        };
        let finish = async move {
            let _until_it_is_stored = span;
            let mut outcome = match first {
                Ok(ack) => ack.stored().await,
                Err(error) => Err(error),
            };
            let mut pause = RETRY_MIN;
            loop {
                match outcome {
                    Ok(()) => {
                        metrics.handed_over(started.elapsed());
                        debug!(%msg_id, gateway = %to, %partition, "envelope handed over");
                        return note(&to, DispatchKind::Stored);
                    }
                    Err(EnqueueError::Full) => {
                        // It is far behind; `prev` of a later envelope will send it to the log.
                        metrics.skipped.inc();
                        note(&to, DispatchKind::Full);
                        warn!(gateway = %to, %msg_id, "gateway's queue is full, envelope skipped");
                        if let Some(about) = about {
                            let since = Instant::now();
                            let newest = Skipped { msg_id, bytes, suffix, since };
                            all_skipped.lock().insert((to, about), newest);
                        }
                        return;
                    }
                    Err(EnqueueError::Refused(error)) => {
                        error!(gateway = %to, %msg_id, error = %chain(&*error), "envelope refused");
                        return note(&to, DispatchKind::Refused);
                    }
                    Err(EnqueueError::Unconfirmed(_)) => {}
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
                outcome = attempt(&bus, &to, msg_id, bytes.clone(), &suffix).await;
            }
        };
        Some(finish.boxed())
    }

    async fn hand_over_waiting(
        &self,
        to: Incarnation,
        (app, user, connection): (AppId, UserId, ConnId),
        msg_ids: &[MsgId],
        because: MsgId,
    ) -> Vec<Pending> {
        let contents = self.contents(app, user, msg_ids).await;
        let mut pending = Vec::new();
        let mut prev = None;
        for msg_id in msg_ids {
            let Some((biz_code, data)) = contents.get(msg_id).cloned() else {
                warn!(%user, %msg_id, "a waiting message is in neither log nor inbox any more");
                continue;
            };
            let target = DirectTarget { connection, prev: prev.replace(*msg_id) };
            let (msg_id, to_one) = (*msg_id, vec![target]);
            let envelope = Envelope::Direct {
                app,
                user,
                msg_id,
                biz_code,
                data,
                to: to_one,
                at_ms: None, // it has waited: how long is no measure of us
            };
            // The same message may wait for further connections of the same gateway.
            let suffix = format!(":w{connection}");
            let ids = (msg_id, because);
            pending.extend(self.hand_over(to.clone(), ids, &envelope, suffix, None).await);
        }
        pending
    }

    /// Returns the contents of messages: from the log, or from the inbox if the log has expired them.
    pub(crate) async fn contents(
        &self,
        app: AppId,
        user: UserId,
        msg_ids: &[MsgId],
    ) -> BTreeMap<MsgId, (i32, String)> {
        let mut found = BTreeMap::new();
        let mut entries = stream::iter(msg_ids.to_vec())
            .map(|msg_id| async move {
                let entry = keep_trying("log not read", || self.bus.read_one(msg_id)).await;
                (msg_id, entry)
            })
            .buffer_unordered(READS_AT_ONCE);
        while let Some((msg_id, entry)) = entries.next().await {
            if let Some(Ok(record)) = entry.map(|entry| entry.record())
                && let Event::DirectMessageSent { biz_code, data, .. } = record.event
            {
                found.insert(msg_id, (biz_code, data));
            }
        }
        if found.len() < msg_ids.len() {
            let kept = keep_trying("inbox not read", || self.bus.read_inbox(app, user)).await;
            for kept in kept {
                found.entry(kept.msg_id).or_insert((kept.biz_code, kept.data));
            }
        }
        found
    }

    fn fact(&self, msg_id: MsgId, app: AppId, user: UserId, fact: &'static str) -> Pending {
        let (bus, partition) = (self.bus.clone(), self.partition);
        let told = async move {
            keep_trying("fact not recorded", || {
                bus.record_fact(partition, app, user, fact, msg_id)
            })
            .await;
        };
        told.boxed()
    }
}

async fn attempt(
    bus: &Bus,
    to: &Incarnation,
    msg_id: MsgId,
    bytes: Bytes,
    suffix: &str,
) -> Result<(), EnqueueError> {
    bus.enqueue(to, msg_id, bytes, suffix, None).await?.stored().await
}

/// Retries until it succeeds. An owner that has lost its claim meanwhile repeats
/// work of its successor, which changes nothing.
async fn keep_trying<T, E, F>(complaint: &str, mut work: impl FnMut() -> F) -> T
where
    E: std::error::Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    let mut pause = RETRY_MIN;
    loop {
        match work().await {
            Ok(done) => return done,
            Err(error) => warn!(error = %chain(&error), "{complaint}, trying again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}
