//! The end of gateways that stopped without deregistering.
//!
//! No gateway is declared dead while the bus fails: the reaper holds a lease of
//! its own, and acts only when it has itself renewed without a failure for as
//! long as a gateway's lease lasts. After an outage every gateway thus has the
//! time to renew that it would have had without one.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use qiyu_nats::{
    Bus,
    bucket::{BucketError, Mirror},
    chain,
    lease::{Lease, LeaseError, LeaseRequest},
    stream::BucketName,
};
use qiyu_schema::{Incarnation, codec};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use crate::{
    gateways::LeaseValue,
    registration::{ANNOUNCED, TERMS, bury, forget, named_by},
    takeover::{TakeoverError, take_over},
};

/// How often the leases are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The reaper has nothing to be set.
#[derive(Clone, Debug, Default)]
pub struct Config {}

/// The reaper could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The lives of gateways cannot be read.
    #[error("follow the gateways")]
    Follow(#[source] BucketError),
    /// Its own lease could not be taken.
    #[error("take the reaper's own lease")]
    Lease(#[source] LeaseError),
}

/// Appends the ends of dead gateways until stopped. Several reapers may run: they write
/// the same.
pub struct Reaper {
    tasks: TaskTracker,
    lease: Lease,
}

#[derive(Clone)]
struct Watch {
    bus: Bus,
    lease: Lease,
    incarnations: Mirror,
    buried: Counter,
    tasks: TaskTracker,
    /// Gateways whose takeover is under way in this process.
    at_work: Arc<Mutex<HashSet<Incarnation>>>,
    /// When each life was first seen; forgotten with it.
    seen: Arc<Mutex<HashMap<Incarnation, Instant>>>,
    /// Lives that have held their lease, by the register's word or by our own eyes.
    announced: Arc<Mutex<HashSet<Incarnation>>>,
}

impl Reaper {
    /// Starts looking.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub async fn start(
        _config: Config,
        bus: &Bus,
        registry: &mut Registry,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let buried = Counter::default();
        registry.sub_registry_with_prefix("qiyu_presence").register(
            "gateways_buried",
            "Gateways declared dead because their lease ended without a goodbye",
            buried.clone(),
        );
        let tasks = TaskTracker::new();
        let incarnations = bus
            .bucket(BucketName::Incarnations)
            .mirror(&tasks, stop.clone())
            .await
            .map_err(StartError::Follow)?;
        // Its own key: two reapers must not take each other for themselves.
        let key = format!("{:032x}", qiyu_schema::ticket::fresh_nonce());
        let value = Bytes::from_static(b"reaper");
        let (bucket, revision) = (BucketName::Reapers, 0);
        let wanted = LeaseRequest { bucket, key: &key, revision, value, terms: TERMS };
        let lease = Lease::take(bus, wanted, &tasks, stop.clone()).await;
        let lease = lease.map_err(StartError::Lease)?;
        let watch = Watch {
            bus: bus.clone(),
            lease: lease.clone(),
            incarnations,
            buried,
            tasks: tasks.clone(),
            at_work: Arc::default(),
            seen: Arc::default(),
            announced: Arc::default(),
        };
        tasks.spawn(async move {
            let _alarm = stop.clone().drop_guard(); // a dead reaper lets ghosts live
            stop.run_until_cancelled(watch.run()).await;
        });
        tasks.close();
        Ok(Self { tasks, lease })
    }

    /// Whether it could act if it had to.
    ///
    /// # Errors
    ///
    /// The reason why not, for people.
    pub fn ready(&self) -> Result<(), String> {
        if self.lease.age() < TERMS.ttl {
            Ok(())
        } else {
            Err(format!("own lease not renewed for {:?}", self.lease.age()))
        }
    }

    /// Waits until it has stopped.
    pub async fn stopped(self) {
        self.tasks.wait().await;
        self.lease.release().await;
    }
}

impl Watch {
    async fn run(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.lease.stable_for() < TERMS.ttl || TERMS.renew_every * 2 < self.lease.age() {
                continue; // the bus was ill, or is
            }
            for (key, slot) in self.incarnations.all() {
                let Some(gateway) = named_by(&key) else { continue };
                if slot.value.as_deref() == Some(ANNOUNCED) {
                    self.announced.lock().insert(gateway.clone());
                }
                if self.at_work.lock().contains(&gateway) {
                    continue; // its takeover is under way
                }
                if let Err(error) = self.look_at(&gateway).await {
                    warn!(%gateway, error = %chain(&error), "gateway not looked at");
                }
            }
        }
    }

    async fn look_at(&self, gateway: &Incarnation) -> Result<(), BucketError> {
        // From the leader, not from a mirror: this decides over a life.
        let leases = self.bus.bucket(BucketName::Gateways);
        let lease = leases.read(gateway.id.as_str()).await?;
        let holder = lease.value.as_deref().and_then(|v| codec::decode::<LeaseValue>(v).ok());
        // By our own clock: a gateway's may be wrong.
        let first_seen = *self.seen.lock().entry(gateway.clone()).or_insert_with(Instant::now);
        let just_begun = first_seen.elapsed() < BEGIN_PATIENCE;
        match holder {
            // Marked by us or another reaper that may not have come to the end of it.
            Some(value) if value.dead && value.epoch == gateway.epoch => {}
            Some(value) if value.epoch == gateway.epoch => {
                self.announced.lock().insert(gateway.clone());
                return Ok(());
            }
            // A newer incarnation of the same id: this one is over.
            Some(value) if gateway.epoch < value.epoch => {}
            // Registered, perhaps not announced yet; one that was seen announced is dead.
            _ if just_begun && !self.announced.lock().contains(gateway) => return Ok(()),
            _ => {
                let (epoch, none) = (gateway.epoch, String::new);
                let dead = LeaseValue {
                    epoch,
                    ws: none(),
                    tcp: none(),
                    connections: 0,
                    draining: true,
                    dead: true,
                };
                let dead = codec::encode(&dead).expect("plain data encodes");
                let key = gateway.id.as_str();
                match leases.set_if(key, lease.revision, dead, Some(DEAD_FOR)).await {
                    Ok(_) => {}
                    Err(BucketError::Conflict { .. }) => return Ok(()), // it woke up in time
                    Err(error) => return Err(error),
                }
            }
        }
        self.at_work.lock().insert(gateway.clone());
        let (watch, gateway) = (self.clone(), gateway.clone());
        // In the background: other deaths must not wait for this one's queue.
        self.tasks.spawn(async move {
            warn!(%gateway, "the gateway is over: burying it and taking over what it left");
            match watch.settle(&gateway).await {
                Ok(()) => {
                    watch.buried.inc();
                    watch.seen.lock().remove(&gateway);
                    watch.announced.lock().remove(&gateway);
                }
                Err(error) => {
                    warn!(%gateway, error = %chain(&error), "takeover not finished, trying again");
                }
            }
            watch.at_work.lock().remove(&gateway);
        });
        Ok(())
    }

    async fn settle(&self, gateway: &Incarnation) -> Result<(), TakeoverError> {
        bury(&self.bus, gateway).await.map_err(TakeoverError::Bury)?;
        take_over(&self.bus, gateway).await?;
        forget(&self.bus, gateway).await;
        Ok(())
    }
}

/// How long a gateway that was declared dead finds that out when it wakes up.
const DEAD_FOR: Duration = Duration::from_secs(24 * 3600);
/// How long a gateway may take from registering to announcing itself.
const BEGIN_PATIENCE: Duration = Duration::from_secs(15);
