//! The worker: claims its partitions by compare-and-set, valid with its lease,
//! and runs an owner for each.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use prometheus_client::registry::Registry;
use qiyu_nats::{
    Bus,
    bucket::{BucketError, Mirror},
    chain,
    lease::{Lease, LeaseError, LeaseRequest, LeaseTerms},
    position::Claim,
    stream::BucketName,
    vitals::FanoutVitals,
};
use qiyu_schema::{Partition, codec, id::WorkerId};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    handovers::{self, Handovers},
    heat::Heat,
    metrics::Metrics,
    owner::{self, End, Means, Owner},
};

/// A dead worker's partitions move after this.
const TERMS: LeaseTerms = LeaseTerms {
    ttl: Duration::from_secs(5),
    renew_every: Duration::from_secs(1),
    retry_every: Duration::from_millis(300),
};

/// With a lease older than this a worker sends nothing: another worker may own
/// its partitions in a second.
pub(crate) const ACT_FOR: Duration = Duration::from_secs(4);
const _: () = assert!(ACT_FOR.as_secs() < TERMS.ttl.as_secs());

/// How often the claims are looked at when nothing changes.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After a fault of an owner, before its partition is taken up again.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// Settings of fan-out.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long an anchor may be absent before its room is closed. `None`: without limit.
    pub anchor_grace: Option<Duration>,
}

/// Fan-out could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The worker's lease could not be taken.
    #[error("take the worker's lease")]
    Lease(#[source] LeaseError),
    /// The query service of owners could not be started.
    #[error("announce the service qiyu-fanout")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Workers or claims cannot be read.
    #[error("follow workers and claims")]
    Follow(#[source] BucketError),
}

/// The fan-out role of this process.
pub struct Fanout {
    tasks: TaskTracker,
    lease: Lease,
    coverage: watch::Receiver<Coverage>,
    metrics: Metrics,
    heat: Heat,
}

/// The ownership of all partitions, as this worker knows it.
#[derive(Clone, Copy, Debug, Default)]
struct Coverage {
    unowned: usize,
    starting: usize,
}

impl Fanout {
    /// Joins the workers and starts owners for its share.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub async fn start(
        config: Config,
        bus: &Bus,
        registry: &mut Registry,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let metrics = Metrics::register(registry);
        let tasks = TaskTracker::new();
        let nonce = qiyu_schema::ticket::fresh_nonce();
        let id: WorkerId = format!("w-{nonce:032x}").parse().expect("hex digits make a name");
        let claim = Claim { worker: id.clone(), epoch: qiyu_nats::now_ms() };
        let value = codec::encode(&claim).expect("plain data encodes");
        // The lease outlives `stop`: it covers the hand-over, then it is released.
        let lease_stop = CancellationToken::new();
        let (bucket, key, revision) = (BucketName::Workers, id.as_str(), 0);
        let wanted = LeaseRequest { bucket, key, revision, value, terms: TERMS };
        let lease = Lease::take(bus, wanted, &tasks, lease_stop.clone()).await;
        let lease = lease.map_err(StartError::Lease)?;
        let follow = |name| {
            let (bucket, tasks, stop) = (bus.bucket(name), tasks.clone(), stop.clone());
            async move { bucket.mirror(&tasks, stop).await.map_err(StartError::Follow) }
        };
        let workers = follow(BucketName::Workers).await?;
        let claims = follow(BucketName::Claims).await?;
        let answering = bus
            .command_service("qiyu-fanout", "What partition owners know", &tasks, stop.clone())
            .await
            .map_err(StartError::Answer)?;
        let (handovers, lines) = Handovers::new(metrics.clone());
        let writing = handovers::record(bus.clone(), claim.clone(), lines, metrics.clone());
        let alarm = stop.clone();
        tasks.spawn(async move {
            let _alarm = alarm.drop_guard(); // it ends by itself only after all owners have
            writing.await;
        });
        let heat = Heat::default();
        let unknown = usize::from(Partition::COUNT);
        let (told, coverage) = watch::channel(Coverage { unowned: unknown, starting: unknown });
        let worker = Worker {
            bus: bus.clone(),
            claim,
            lease: lease.clone(),
            workers,
            claims,
            means: Means {
                metrics: metrics.clone(),
                heat: heat.clone(),
                tasks: tasks.clone(),
                answering,
                handovers,
                anchor_grace: config.anchor_grace,
            },
            owners: HashMap::new(),
            coverage: told,
        };
        let alarm = stop.clone();
        tasks.spawn(async move {
            let _alarm = alarm.clone().drop_guard(); // without its worker the process is no use
            let _lease = lease_stop.drop_guard();
            worker.run(alarm).await;
        });
        tasks.close();
        Ok(Self { tasks, lease, coverage, metrics, heat })
    }

    /// Checks that every partition has an owner and that ours are running.
    ///
    /// # Errors
    ///
    /// The reason why not, for people.
    pub fn ready(&self) -> Result<(), String> {
        let Coverage { unowned, starting } = *self.coverage.borrow();
        match (self.lease.age() < ACT_FOR, unowned, starting) {
            (false, ..) => Err(format!("lease not renewed for {:?}", self.lease.age())),
            (true, 0, 0) => Ok(()),
            (true, unowned, starting) => {
                Err(format!("{unowned} partitions without an owner, {starting} starting"))
            }
        }
    }

    /// Returns the vitals of this process.
    pub fn vitals(&self) -> FanoutVitals {
        let ms = |behind: Duration| u64::try_from(behind.as_millis()).unwrap_or(u64::MAX);
        FanoutVitals {
            partitions: self.metrics.lags().into_iter().map(|(p, lag)| (p, ms(lag))).collect(),
            events: self.metrics.events.get(),
            envelopes: self.metrics.envelopes.get(),
            skipped: self.metrics.skipped.get(),
            rooms: self.heat.hottest(),
        }
    }

    /// Waits until every partition is released.
    pub async fn stopped(self) {
        self.tasks.wait().await;
    }
}

struct Worker {
    bus: Bus,
    claim: Claim,
    lease: Lease,
    workers: Mirror,
    claims: Mirror,
    means: Means,
    owners: HashMap<Partition, Running>,
    coverage: watch::Sender<Coverage>,
}

struct Running {
    hand_over: CancellationToken,
    task: JoinHandle<End>,
}

impl Worker {
    async fn run(mut self, stop: CancellationToken) {
        let mut changes = (self.workers.changes(), self.claims.changes());
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break, // first: others wait for our partitions
                _ = changes.0.changed() => {} // a worker came or went
                _ = changes.1.changed() => {} // a partition was let go
                () = tokio::time::sleep(LOOK_EVERY) => {} // an owner of ours may have ended
            }
            self.settle_ended().await;
            self.rebalance().await;
        }
        let all: Vec<Partition> = self.owners.keys().copied().collect();
        self.let_go(all).await;
        self.lease.release().await;
    }

    /// Starts owners for our partitions, and releases partitions of other workers.
    async fn rebalance(&mut self) {
        if ACT_FOR <= self.lease.age() {
            return; // our view may be outdated
        }
        let mut live: HashSet<WorkerId> =
            self.workers.all().iter().filter_map(|(key, _)| key.parse().ok()).collect();
        live.insert(self.claim.worker.clone());
        let (mut wanted, mut moving, mut idle, mut unowned) =
            (Vec::new(), Vec::new(), Vec::new(), 0);
        for partition in Partition::all() {
            let ours = *home(partition, &live) == self.claim.worker;
            let running = self.owners.contains_key(&partition);
            let holder = self.holder(partition);
            let held = holder.as_ref().is_some_and(|claim| live.contains(&claim.worker));
            unowned += usize::from(!held);
            match (ours, running) {
                (true, false) => wanted.push(partition),
                (false, true) => moving.push(partition),
                // An owner of ours ended by itself, and its home is elsewhere by now.
                (false, false) if holder.as_ref() == Some(&self.claim) => idle.push(partition),
                _ => {}
            }
        }
        for partition in idle {
            self.give_up(partition).await;
        }
        let starting = wanted.len();
        self.coverage.send_replace(Coverage { unowned, starting });
        self.means.metrics.unowned.set(unowned as i64);
        self.let_go(moving).await;
        self.take_up(wanted, &live).await;
        self.means.metrics.partitions.set(self.owners.len() as i64);
    }

    fn holder(&self, partition: Partition) -> Option<Claim> {
        let value = self.claims.get(&partition.to_string())?;
        codec::decode(&value).ok()
    }

    async fn take_up(&mut self, wanted: Vec<Partition>, live: &HashSet<WorkerId>) {
        let claimed: Vec<Partition> = stream::iter(wanted)
            .map(|partition| {
                let worker = &*self;
                async move {
                    match worker.claim_one(partition, live).await {
                        Ok(claimed) => claimed.then_some(partition),
                        Err(error) => {
                            warn!(%partition, error = %chain(&error), "partition not claimed, trying again");
                            None
                        }
                    }
                }
            })
            .buffer_unordered(16)
            .filter_map(std::future::ready)
            .collect()
            .await;
        if claimed.is_empty() {
            return;
        }
        let bus = self.bus.clone();
        let prepared = async {
            let mut prepared: Vec<owner::Prepared> = stream::iter(claimed.clone())
                .map(|partition| {
                    let bus = &bus;
                    async move {
                        // One that fails stays claimed and is tried again with the next look.
                        let prepared = owner::prepare(bus, partition).await;
                        let tell =
                            |error: &End| warn!(%partition, error = %chain(error), "partition not prepared");
                        prepared.inspect_err(tell).ok()
                    }
                })
                .buffer_unordered(16)
                .filter_map(std::future::ready)
                .collect()
                .await;
            owner::catch_up(&bus, &mut prepared).await?;
            Ok::<_, End>(prepared)
        };
        match prepared.await {
            Ok(prepared) => {
                info!(partitions = prepared.len(), "partitions taken up");
                for one in prepared {
                    self.start_owner(one);
                }
            }
            // Still claimed by us and not running: the next look tries again.
            Err(error) => warn!(error = %chain(&error), "partitions not taken up, trying again"),
        }
    }

    /// Claims a partition that no live worker holds; true also for one we hold already.
    async fn claim_one(
        &self,
        partition: Partition,
        live: &HashSet<WorkerId>,
    ) -> Result<bool, BucketError> {
        let (bucket, key) = (self.bus.bucket(BucketName::Claims), partition.to_string());
        let slot = bucket.read(&key).await?;
        let holder = slot.value.as_deref().and_then(|v| codec::decode::<Claim>(v).ok());
        match holder {
            Some(holder) if holder == self.claim => return Ok(true),
            Some(holder) if live.contains(&holder.worker) => return Ok(false),
            Some(holder) => {
                // The mirror shows no lease; only a read from the leader is certain.
                let workers = self.bus.bucket(BucketName::Workers);
                if workers.read(holder.worker.as_str()).await?.value.is_some() {
                    return Ok(false);
                }
            }
            None => {}
        }
        let value = codec::encode(&self.claim).expect("plain data encodes");
        match bucket.set_if(&key, slot.revision, value, None).await {
            Ok(_) => Ok(true),
            Err(BucketError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn start_owner(&mut self, prepared: owner::Prepared) {
        let partition = prepared.partition;
        let hand_over = CancellationToken::new();
        let owner = Owner::new(
            &self.bus,
            prepared,
            self.claim.clone(),
            self.lease.clone(),
            self.means.clone(),
        );
        let task = self.means.tasks.spawn(owner.run(hand_over.clone()));
        self.owners.insert(partition, Running { hand_over, task });
    }

    /// Removes owners that stopped by themselves: their partitions can be started again.
    async fn settle_ended(&mut self) {
        let ended: Vec<Partition> = self
            .owners
            .iter()
            .filter(|(_, running)| running.task.is_finished())
            .map(|(partition, _)| *partition)
            .collect();
        for partition in &ended {
            let Some(running) = self.owners.remove(partition) else { continue };
            match running.task.await {
                Ok(end) => warn!(%partition, %end, "owner stopped, starting again"),
                Err(error) => {
                    warn!(%partition, error = %chain(&error), "owner broke down, starting again")
                }
            }
            self.means.metrics.restarts.inc();
        }
        if !ended.is_empty() {
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }

    /// Releases partitions and their claims, so that other workers need not wait for the lease.
    async fn let_go(&mut self, partitions: Vec<Partition>) {
        let mut leaving = Vec::new();
        for partition in partitions {
            if let Some(running) = self.owners.remove(&partition) {
                running.hand_over.cancel(); // all at once, then wait for each
                leaving.push((partition, running.task));
            }
        }
        for (partition, task) in leaving {
            match task.await {
                Ok(End::HandedOver) => {}
                Ok(end) => warn!(%partition, %end, "partition not handed over in order"),
                Err(error) => warn!(%partition, error = %chain(&error), "owner broke down"),
            }
            // In every case no owner acts under this claim any more.
            self.give_up(partition).await;
        }
    }

    async fn give_up(&self, partition: Partition) {
        let (bucket, key) = (self.bus.bucket(BucketName::Claims), partition.to_string());
        let given_up = async {
            let slot = bucket.read(&key).await?;
            let holder = slot.value.as_deref().and_then(|v| codec::decode::<Claim>(v).ok());
            match holder {
                Some(holder) if holder == self.claim => bucket.remove_if(&key, slot.revision).await,
                _ => Ok(()),
            }
        };
        if let Err(error) = given_up.await {
            warn!(%partition, error = %chain(&error), "claim not given up, it ends with the lease");
        }
    }
}

/// Returns a partition's worker by rendezvous hashing: when a worker comes or goes,
/// only its own share moves.
fn home(partition: Partition, live: &HashSet<WorkerId>) -> &WorkerId {
    let weight = |worker: &&WorkerId| (weight(partition, worker), worker.as_str().to_owned());
    live.iter().max_by_key(weight).expect("we are among the living ourselves")
}

/// FNV-1a with a last mix. Written out, because workers of different builds
/// must agree, and the standard library's hasher may change with the compiler.
fn weight(partition: Partition, worker: &WorkerId) -> u64 {
    let key = format!("{partition}:{worker}");
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_comes_takes_only_its_own_share() {
        let ids: Vec<WorkerId> = (0..4).map(|n| format!("w-{n}").parse().unwrap()).collect();
        let three: HashSet<WorkerId> = ids[..3].iter().cloned().collect();
        let four: HashSet<WorkerId> = ids.iter().cloned().collect();
        for partition in Partition::all() {
            let (before, after) = (home(partition, &three), home(partition, &four));
            assert!(before == after || *after == ids[3]);
        }
    }

    #[test]
    fn every_worker_gets_a_fair_share() {
        let ids: HashSet<WorkerId> = (0..4).map(|n| format!("w-{n}").parse().unwrap()).collect();
        for id in &ids {
            let share = Partition::all().filter(|p| home(*p, &ids) == id).count();
            assert!((6..=28).contains(&share), "{id} has {share} of 64");
        }
    }
}
