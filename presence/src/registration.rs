//! One life of a gateway: begun, leased, ended.
//!
//! The lease says "alive" and expires by itself, so it cannot also say "was
//! alive and is not buried yet": after an expiry nothing of it is left. The
//! bucket `incarnations` says that, without any time to live. A life enters it
//! before its lease and leaves it only once its `gone` is in the log and its
//! queue is empty.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use qiyu_nats::{
    Bus,
    bucket::BucketError,
    chain,
    lease::{Lease, LeaseError, LeaseRequest, LeaseTerms, Renewal},
    log::{APPEND_DEADLINE, AppendCondition, AppendError, ReadError},
    stream::BucketName,
};
use qiyu_schema::{
    GatewayId, Incarnation, Partition, codec,
    event::{Event, Record},
    subject,
};
use serde::Serialize;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use crate::{
    gateways::LeaseValue,
    takeover::{TakeoverError, take_over},
};

/// Expires 7 s after its last renewal: with the reaper's look every half
/// second a dead gateway's users are offline within 10 s (docs/PROTOCOL.md, section 6).
pub(crate) const TERMS: LeaseTerms = LeaseTerms {
    ttl: Duration::from_secs(7),
    renew_every: Duration::from_secs(2),
    retry_every: Duration::from_millis(300),
};

/// Unrenewed for longer than this a gateway must not act: its lease may be
/// about to end. Below the ttl by more than any clock drifts in a few seconds.
pub(crate) const SUSPEND_AFTER: Duration = Duration::from_secs(5);
const _: () = assert!(SUSPEND_AFTER.as_millis() < TERMS.ttl.as_millis());
const _: () = assert!(TERMS.renew_every.as_millis() * 2 < SUSPEND_AFTER.as_millis());

/// The value of an incarnation that is registered and not announced yet.
const BEGINNING: &[u8] = b"serving";
/// And of one that is: without its lease it is over. A reaper that has just
/// started has not seen that lease itself.
pub(crate) const ANNOUNCED: &[u8] = b"announced";

/// A life's key in `incarnations`.
fn key(gateway: &Incarnation) -> String {
    gateway.to_string()
}

/// The life a key of `incarnations` names.
pub(crate) fn named_by(key: &str) -> Option<Incarnation> {
    let (id, epoch) = key.rsplit_once('.')?;
    Some(Incarnation { id: id.parse().ok()?, epoch: epoch.parse().ok()? })
}

/// A gateway could not begin.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Its predecessor's end could not be written down.
    #[error("append the end of gateway {gateway} to the log")]
    AppendGone {
        /// The predecessor.
        gateway: Incarnation,
        source: AppendError,
    },
    /// Its own life could not.
    #[error("register gateway {gateway}")]
    Register { gateway: GatewayId, source: BucketError },
    /// Its lease could not be taken.
    #[error("announce gateway {gateway}")]
    Announce { gateway: Incarnation, source: LeaseError },
    /// It took so long to announce itself that it was declared dead.
    #[error("gateway {gateway} was declared dead before it was announced; is its clock right?")]
    TooLate { gateway: Incarnation },
    /// The log could not be asked for its predecessors.
    #[error("find the last end of gateway {gateway}")]
    Past {
        /// The id.
        gateway: GatewayId,
        source: ReadError,
    },
    /// Another process lives under this id right now.
    #[error(
        "gateway id {gateway} is in use: another process has begun under it just now; give each \
         gateway its own QIYU_GATEWAY_ID"
    )]
    InUse {
        /// The id.
        gateway: GatewayId,
    },
}

/// A gateway's life.
pub struct Registration {
    bus: Bus,
    incarnation: Incarnation,
    lease: Option<Lease>,
    value: LeaseValue,
}

impl Registration {
    /// Registers a new incarnation: appends the end of its predecessor if the log lacks
    /// it, and takes a higher epoch. No owner sends to it before it is announced.
    ///
    /// # Errors
    ///
    /// [`RegisterError`], never `Announce`.
    pub async fn register(
        bus: &Bus,
        id: &GatewayId,
        ws: String,
        tcp: String,
    ) -> Result<Self, RegisterError> {
        let incarnations = bus.bucket(BucketName::Incarnations);
        let register = |source| RegisterError::Register { gateway: id.clone(), source };
        let registered = incarnations.list().await.map_err(register)?;
        let mut epoch = qiyu_nats::now_ms().max(last_gone(bus, id).await? + 1);
        for gateway in registered.keys().filter_map(|key| named_by(key)).filter(|g| g.id == *id) {
            // The reaper recovers its queue, as for any other dead gateway.
            info!(%gateway, "burying the predecessor");
            epoch = epoch.max(gateway.epoch + 1);
            bury(bus, &gateway)
                .await
                .map_err(|source| RegisterError::AppendGone { gateway, source })?;
        }
        let incarnation = Incarnation { id: id.clone(), epoch };
        match incarnations.set_if(&key(&incarnation), 0, Bytes::from_static(BEGINNING), None).await
        {
            Ok(_) => {}
            Err(BucketError::Conflict { .. }) => {
                return Err(RegisterError::InUse { gateway: id.clone() });
            }
            Err(error) => return Err(register(error)),
        }
        let value = LeaseValue { epoch, ws, tcp, connections: 0, draining: false, dead: false };
        Ok(Self { bus: bus.clone(), incarnation, lease: None, value })
    }

    /// Takes the lease: from here on others send to this gateway.
    ///
    /// # Errors
    ///
    /// [`RegisterError::Announce`].
    pub async fn announce(
        &mut self,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<(), RegisterError> {
        let gateway = self.incarnation.clone();
        let key = gateway.id.as_str().to_owned();
        let bucket = self.bus.bucket(BucketName::Gateways);
        let slot = bucket.read(&key).await.map_err(|source| RegisterError::Announce {
            gateway: gateway.clone(),
            source: LeaseError::Take { key: key.clone(), source },
        })?;
        let holder = slot.value.as_deref().and_then(|v| codec::decode::<LeaseValue>(v).ok());
        if holder.is_some_and(|holder| holder.dead && gateway.epoch <= holder.epoch) {
            return Err(RegisterError::TooLate { gateway });
        }
        // A predecessor that still lives under this id loses its lease here, and stops.
        let value = encoded(&self.value);
        let (bucket, revision) = (BucketName::Gateways, slot.revision);
        let wanted = LeaseRequest { bucket, key: &key, revision, value, terms: TERMS };
        let taken = Lease::take(&self.bus, wanted, tasks, stop);
        let incarnation = gateway.clone();
        self.lease =
            Some(taken.await.map_err(|source| RegisterError::Announce { gateway, source })?);
        let incarnations = self.bus.bucket(BucketName::Incarnations);
        let announced = Bytes::from_static(ANNOUNCED);
        if let Err(error) = incarnations.set(&self::key(&incarnation), announced, None).await {
            debug!(gateway = %incarnation, error = %chain(&error), "not registered as announced; its death may be found later");
        }
        Ok(())
    }

    /// Which life this is.
    pub fn incarnation(&self) -> &Incarnation {
        &self.incarnation
    }

    /// The lease, once announced.
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// Whether another process has begun a life under this id since: two
    /// processes with one id would take it from each other without end.
    pub async fn is_superseded(&self) -> bool {
        let leases = self.bus.bucket(BucketName::Gateways);
        let slot = leases.read(self.incarnation.id.as_str()).await.ok();
        slot.and_then(|slot| codec::decode::<LeaseValue>(&slot.value?).ok())
            .is_some_and(|holder| self.incarnation.epoch < holder.epoch && !holder.dead)
    }

    /// Whether the gateway may act: announced, and renewed recently enough.
    pub fn is_active(&self) -> bool {
        self.lease
            .as_ref()
            .is_some_and(|lease| lease.age() < SUSPEND_AFTER && !lease.lost().is_cancelled())
    }

    /// Changes the value of the lease. An equal value is not written.
    pub fn update_lease(&mut self, connections: u64, draining: bool) {
        if (self.value.connections, self.value.draining) == (connections, draining) {
            return;
        }
        let when = match self.value.draining == draining {
            true => Renewal::WhenDue,
            false => Renewal::AtOnce,
        };
        self.value.connections = connections;
        self.value.draining = draining;
        if let Some(lease) = &self.lease {
            lease.set_value(encoded(&self.value), when);
        }
    }

    /// Ends the incarnation in order: the log records the end first, then its queue is
    /// recovered, then the lease is released.
    pub async fn deregister(self) {
        let finished = async {
            bury(&self.bus, &self.incarnation).await.map_err(TakeoverError::Bury)?;
            take_over(&self.bus, &self.incarnation).await?;
            Ok::<_, TakeoverError>(())
        };
        match tokio::time::timeout(END_PATIENCE, finished).await {
            Ok(Ok(())) => forget(&self.bus, &self.incarnation).await,
            Ok(Err(error)) => {
                warn!(gateway = %self.incarnation, error = %chain(&error), "end left to the reaper")
            }
            Err(_) => warn!(gateway = %self.incarnation, "end left to the reaper: it takes long"),
        }
        // Last: while the lease lives, no other process recovers the same queue.
        if let Some(lease) = &self.lease {
            lease.release().await;
        }
    }
}

/// Returns the newest epoch of this id with an end in the log, or 0.
async fn last_gone(bus: &Bus, id: &GatewayId) -> Result<u64, RegisterError> {
    let subject = subject::gateway_gone(Partition::all().next().unwrap_or_default(), id);
    let past = |source| RegisterError::Past { gateway: id.clone(), source };
    let entry = bus.read_last(&subject).await.map_err(past)?;
    match entry.and_then(|entry| entry.record().ok()).map(|record| record.event) {
        Some(Event::GatewayGone { gateway }) => Ok(gateway.epoch),
        _ => Ok(0),
    }
}

/// The time that a stopping gateway spends on the recovery of its own queue.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// Appends `gone` to every partition: any of them may know members or sessions of it.
pub(crate) async fn bury(bus: &Bus, gateway: &Incarnation) -> Result<(), AppendError> {
    let record = Record::at(qiyu_nats::now_ms(), Event::GatewayGone { gateway: gateway.clone() });
    stream::iter(Partition::all())
        .map(|partition| {
            let subject = subject::gateway_gone(partition, &gateway.id);
            let key = format!("gone:{gateway}:{partition}");
            let record = &record;
            async move {
                bus.append(subject, record, &key, AppendCondition::Any, APPEND_DEADLINE)
                    .await
                    .map(drop)
            }
        })
        .buffer_unordered(16)
        .try_collect()
        .await
}

/// Takes a life that is over and done with out of the register.
pub(crate) async fn forget(bus: &Bus, gateway: &Incarnation) {
    let incarnations = bus.bucket(BucketName::Incarnations);
    let removed = async {
        let slot = incarnations.read(&key(gateway)).await?;
        match slot.value {
            Some(_) => incarnations.remove_if(&key(gateway), slot.revision).await,
            None => Ok(()),
        }
    };
    match removed.await {
        Ok(()) | Err(BucketError::Conflict { .. }) => {}
        Err(error) => {
            warn!(%gateway, error = %chain(&error), "a life that is over is still registered")
        }
    }
}

fn encoded<T: Serialize>(value: &T) -> Bytes {
    codec::encode(value).expect("plain data encodes")
}
