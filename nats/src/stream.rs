//! The streams and buckets, each with its one kind of writer.
//!
//! | stream | writer | content |
//! |---|---|---|
//! | `IM_IN` | gateways (messages, members, sessions), living (opened, closed, sanctions), presence (gone); in a sandbox `qiyu replay --into` | the log |
//! | `IM_OUT` | the partition's owner | envelopes queued for a gateway |
//! | `IM_LEDGER` | each gateway (outcomes), each worker (dispatches), api (pages read), by subject | outcomes of messages |
//! | `IM_SNAP` | the partition's owner | snapshots of the fold |
//! | `IM_INBOX` | the partition's owner | pending direct messages, for longer than the log lasts |
//! | `IM_EVT` | the partition's owner | facts derived by the fold |
//! | `IM_IDS` | living | room ids |
//! | `IM_DEAD` | the process that met it | dead letters |
//!
//! | bucket | writer | content |
//! |---|---|---|
//! | `gateways` | each gateway its own key; presence marks the dead | leases |
//! | `incarnations` | each gateway its own key; presence removes the ended | gateway incarnations that have not ended |
//! | `reapers` | each presence process its own key | leases |
//! | `workers` | each worker its own key | leases |
//! | `claims` | workers, by CAS | owner of each partition |
//! | `positions` | the partition's owner, by CAS | position of each partition; its snapshots |
//! | `presence` | gateways, by CAS | a user's sessions, for is-online and limits |
//! | `tickets` | gateways | used tickets |
//! | `rooms` | living | open rooms, for the gateways' checks |
//! | `anchors` | living, by CAS | the open room of each anchor |
//! | `watch` | the partition's owner | counts of each room |
//! | `measures` | living, by CAS | sanctions of each user |

use std::time::Duration;

use async_nats::jetstream::{
    Context,
    context::{AccountError, CreateKeyValueErrorKind, CreateStreamError, CreateStreamErrorKind},
    kv,
    stream::{Config, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType},
};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    chain,
    config::{BusConfig, Profile},
};
use qiyu_schema::{id::Partition, subject};

/// The server remembers a `Nats-Msg-Id` for this long.
pub const DEDUP_WINDOW: Duration = Duration::from_secs(120);

/// The log.
pub const IN: &str = "IM_IN";
/// The queues of the gateways.
pub const OUT: &str = "IM_OUT";
/// The outcomes of messages.
pub const LEDGER: &str = "IM_LEDGER";
/// Snapshots of the fold.
pub const SNAP: &str = "IM_SNAP";
/// Pending direct messages of absent users.
pub const INBOX: &str = "IM_INBOX";
/// Facts derived by the fold.
pub const EVT: &str = "IM_EVT";
/// Room ids.
pub const IDS: &str = "IM_IDS";
/// Dead letters.
pub const DEAD: &str = "IM_DEAD";

/// Envelopes a gateway's queue may hold before the gateway is skipped and reads
/// the log. Far more than a healthy gateway ever holds.
pub const OUTBOX_MESSAGES_MAX: i64 = 20_000;
/// The recipients of an older envelope are gone; they resume from the log.
pub const OUTBOX_AGE_MAX: Duration = Duration::from_secs(600);
/// One consumer per gateway incarnation; unset, 2.15 caps a stream at 1000.
const OUTBOX_CONSUMERS_MAX: i32 = 4_000;
/// Enough for 64 partition owners, resumes and debugging readers.
const LOG_CONSUMERS_MAX: i32 = 4_000;
/// Largest entry of the log: a batch of 1000 members is 48 KiB, a message 64 KiB.
const LOG_MESSAGE_BYTES_MAX: i32 = 256 * 1024;
/// A pending direct message is kept for this long.
pub const INBOX_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Pending direct messages kept for one user.
pub const INBOX_MESSAGES_MAX: i64 = 1_000;

/// The buckets. A typo in a name cannot create another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BucketName {
    /// Gateway leases.
    Gateways,
    /// Gateway incarnations that have not ended, leased or not.
    Incarnations,
    /// Reaper leases.
    Reapers,
    /// Worker leases.
    Workers,
    /// Partition owners.
    Claims,
    /// Fold positions and snapshot heads.
    Positions,
    /// Sessions of users.
    Presence,
    /// Used tickets.
    Tickets,
    /// Open rooms.
    Rooms,
    /// Open room of each anchor.
    Anchors,
    /// Counts of each room.
    Watch,
    /// Sanctions on users.
    Sanctions,
}

impl BucketName {
    const ALL: [Self; 12] = [
        Self::Gateways,
        Self::Incarnations,
        Self::Reapers,
        Self::Workers,
        Self::Claims,
        Self::Positions,
        Self::Presence,
        Self::Tickets,
        Self::Rooms,
        Self::Anchors,
        Self::Watch,
        Self::Sanctions,
    ];

    /// Returns the name that NATS knows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateways => "gateways",
            Self::Incarnations => "incarnations",
            Self::Reapers => "reapers",
            Self::Workers => "workers",
            Self::Claims => "claims",
            Self::Positions => "positions",
            Self::Presence => "presence",
            Self::Tickets => "tickets",
            Self::Rooms => "rooms",
            Self::Anchors => "anchors",
            Self::Watch => "watch",
            Self::Sanctions => "measures",
        }
    }

    /// Returns the lifetime of the marker of a removed or expired key. A mirror
    /// that is cut off for less still learns of the end.
    pub(crate) fn marker_age(self) -> Option<Duration> {
        match self {
            Self::Positions => None, // never removed
            Self::Gateways
            | Self::Incarnations
            | Self::Reapers
            | Self::Workers
            | Self::Claims
            | Self::Presence
            | Self::Tickets
            | Self::Rooms
            | Self::Anchors
            | Self::Watch
            | Self::Sanctions => Some(Duration::from_secs(900)),
        }
    }
}

/// A stream or bucket that could not be created or updated.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    #[error("create stream {name}")]
    Stream { name: String, source: CreateStreamError },
    #[error("create bucket {name}")]
    Bucket { name: &'static str, source: async_nats::jetstream::context::CreateKeyValueError },
}

impl ProvisionError {
    /// Whether a bus that is still starting may report it: no leader yet, or too
    /// few servers.
    fn is_transient(&self) -> bool {
        let kind = match self {
            Self::Stream { source, .. } => Some(source.kind()),
            Self::Bucket { source, .. } => match source.kind() {
                CreateKeyValueErrorKind::TimedOut => return true,
                // The error of the stream under the bucket, or of the account query before it.
                _ => match std::error::Error::source(source) {
                    Some(cause) => match cause.downcast_ref::<CreateStreamError>() {
                        Some(error) => Some(error.kind()),
                        None => return cause.is::<AccountError>(),
                    },
                    None => None,
                },
            },
        };
        match kind {
            Some(
                CreateStreamErrorKind::TimedOut
                | CreateStreamErrorKind::JetStreamUnavailable
                | CreateStreamErrorKind::Response,
            ) => true,
            Some(CreateStreamErrorKind::JetStream(error)) => {
                INCOMPLETE_CLUSTER.contains(&error.error_code().0)
            }
            _ => false,
        }
    }
}

/// Error codes of a cluster whose servers have not found each other: no suitable
/// peers, temporarily unavailable, not the leader, insufficient resources,
/// stream offline (nats-server `server/errors.json`).
const INCOMPLETE_CLUSTER: [u64; 5] = [10005, 10008, 10009, 10023, 10118];
/// Pause between two attempts to create or to find a stream.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Interval of warnings while a stream is missing.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// Creates every stream and bucket, or updates existing ones to today's settings.
/// A transient error is retried until `timeout`.
pub(crate) async fn provision(
    js: &Context,
    config: &BusConfig,
    timeout: Duration,
) -> Result<(), ProvisionError> {
    let started = Instant::now();
    while let Err(error) = provision_once(js, config).await {
        if !error.is_transient() || started.elapsed() >= timeout {
            return Err(error);
        }
        warn!(error = %chain(&error), "NATS is not ready for streams yet, trying again");
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    Ok(())
}

async fn provision_once(js: &Context, config: &BusConfig) -> Result<(), ProvisionError> {
    for stream in streams(config) {
        let name = stream.name.clone();
        js.create_or_update_stream(stream)
            .await
            .map_err(|source| ProvisionError::Stream { name, source })?;
    }
    for bucket in BucketName::ALL {
        let name = bucket.as_str();
        js.create_or_update_key_value(kv::Config {
            bucket: name.into(),
            history: 1,
            storage: StorageType::File,
            num_replicas: config.replicas,
            limit_markers: bucket.marker_age(),
            ..Default::default()
        })
        .await
        .map_err(|source| ProvisionError::Bucket { name, source })?;
    }
    Ok(())
}

/// Waits until every stream and bucket exists and has a leader that responds.
pub(crate) async fn wait_until_provisioned(js: &Context, config: &BusConfig) {
    let streams = streams(config).into_iter().map(|stream| stream.name);
    let buckets = BucketName::ALL.iter().map(|bucket| format!("KV_{}", bucket.as_str()));
    let mut warned = None;
    for name in streams.chain(buckets) {
        while let Err(error) = js.get_stream(&name).await {
            if warned.is_none_or(|warned: Instant| warned.elapsed() >= WARN_INTERVAL) {
                warned = Some(Instant::now());
                warn!(stream = %name, error = %chain(&error), "waiting for a stream; `qiyu provision` makes it");
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }
}

fn streams(config: &BusConfig) -> Vec<Config> {
    let base = || Config {
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: config.replicas,
        duplicate_window: DEDUP_WINDOW,
        allow_direct: true,
        max_consumers: LOG_CONSUMERS_MAX,
        ..Default::default()
    };
    // Data that the log can replace need not be on disk before it is confirmed. A
    // server with `sync_interval: always` would sync every acknowledgement too.
    let unsynced = (config.profile == Profile::Durable && config.replicas == 1)
        .then_some(PersistenceMode::Async);
    vec![
        Config {
            name: IN.into(),
            // One by one, so that a partition can be moved to a further stream.
            subjects: Partition::all().map(subject::partition).collect(),
            max_age: config.retain,
            max_message_size: LOG_MESSAGE_BYTES_MAX,
            ..base()
        },
        Config {
            name: OUT.into(),
            subjects: vec!["im.out.>".into()],
            // Never Interest: it confirms messages that it drops.
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            discard_new_per_subject: true,
            max_messages_per_subject: OUTBOX_MESSAGES_MAX,
            max_age: OUTBOX_AGE_MAX,
            max_consumers: OUTBOX_CONSUMERS_MAX,
            persist_mode: unsynced,
            ..base()
        },
        Config {
            name: LEDGER.into(),
            subjects: vec!["im.ledger.>".into()],
            max_age: config.retain,
            persist_mode: unsynced,
            ..base()
        },
        Config { name: SNAP.into(), subjects: vec!["im.snap.>".into()], ..base() },
        Config {
            name: INBOX.into(),
            subjects: vec!["im.inbox.>".into()],
            max_age: INBOX_AGE_MAX,
            max_messages_per_subject: INBOX_MESSAGES_MAX,
            ..base()
        },
        Config {
            name: EVT.into(),
            subjects: vec!["im.evt.>".into()],
            max_age: config.retain,
            ..base()
        },
        Config {
            name: IDS.into(),
            subjects: vec![subject::ROOM_IDS.into()],
            max_messages: 1,
            ..base()
        },
        Config {
            name: DEAD.into(),
            subjects: vec!["im.dead.>".into()],
            max_age: config.retain,
            ..base()
        },
    ]
}
