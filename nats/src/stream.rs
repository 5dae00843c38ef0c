//! The streams and buckets, and who alone writes each.
//!
//! | stream | writer | holds |
//! |---|---|---|
//! | `IM_IN` | gateways (messages, members, sessions), living (opened, closed, measures), presence (gone); in a sandbox `qiyu replay --into` | the log |
//! | `IM_OUT` | the partition's owner | envelopes waiting for a gateway |
//! | `IM_LEDGER` | each gateway (outcomes), each worker (hand-overs), api (pages read), by subject | what became of messages |
//! | `IM_SNAP` | the partition's owner | snapshots of the fold |
//! | `IM_INBOX` | the partition's owner | 1:1 messages waiting longer than the log lasts |
//! | `IM_EVT` | the partition's owner | facts derived by the fold |
//! | `IM_IDS` | living | room ids |
//! | `IM_DEAD` | whoever met it | what could not be decoded |
//!
//! | bucket | writer | holds |
//! |---|---|---|
//! | `gateways` | each gateway its own key; presence marks the dead | leases |
//! | `incarnations` | each gateway its own key; presence ends the dead | which gateway lives are not over yet |
//! | `reapers` | each presence process its own key | leases |
//! | `workers` | each worker its own key | leases |
//! | `claims` | workers, by CAS | who owns which partition |
//! | `positions` | the partition's owner, by CAS | how far a partition is folded; its snapshots |
//! | `presence` | gateways, by CAS | a user's sessions, for is-online and limits |
//! | `tickets` | gateways | tickets already used |
//! | `rooms` | living | open rooms, for the gateways' checks |
//! | `anchors` | living, by CAS | one open room per anchor |
//! | `watch` | the partition's owner | users inside each room |
//! | `measures` | living, by CAS | who may not speak, who may not come in |

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
    bus::{BusConfig, Profile},
    chain,
};
use qiyu_schema::{id::Partition, subject};

/// How long a `Nats-Msg-Id` is remembered by the server.
pub const DEDUP_WINDOW: Duration = Duration::from_secs(120);

/// The log.
pub const IN: &str = "IM_IN";
/// What gateways have to deliver.
pub const OUT: &str = "IM_OUT";
/// What became of it.
pub const LEDGER: &str = "IM_LEDGER";
/// Snapshots of the fold.
pub const SNAP: &str = "IM_SNAP";
/// 1:1 messages of users who are away.
pub const INBOX: &str = "IM_INBOX";
/// Facts derived by the fold.
pub const EVT: &str = "IM_EVT";
/// Room ids.
pub const IDS: &str = "IM_IDS";
/// What nobody could decode.
pub const DEAD: &str = "IM_DEAD";

/// Envelopes one gateway may be behind before it is skipped. Far above what a
/// healthy gateway ever holds; the skipped ones are read from the log.
pub const OUTBOX_MESSAGES_MAX: i64 = 20_000;
/// An envelope older than this would find its recipients gone; they resume from the log.
pub const OUTBOX_AGE_MAX: Duration = Duration::from_secs(600);
/// One consumer per gateway incarnation; unset, 2.15 caps a stream at 1000.
const OUTBOX_CONSUMERS_MAX: i32 = 4_000;
/// 64 partition owners, resumes and debugging readers.
const LOG_CONSUMERS_MAX: i32 = 4_000;
/// The largest entry of the log: a batch of 1000 members is 48 KiB, a message 64 KiB.
const LOG_MESSAGE_BYTES_MAX: i32 = 256 * 1024;
/// How long a 1:1 message waits for its recipient.
pub const INBOX_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many wait for one user.
pub const INBOX_MESSAGES_MAX: i64 = 1_000;

/// The buckets, named so that a typo cannot make a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BucketName {
    /// Gateway leases.
    Gateways,
    /// Gateway lives that are not over yet, leased or not.
    Incarnations,
    /// Leases of those who bury dead gateways.
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
    /// Users inside each room.
    Watch,
    /// Measures against users.
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

    /// As NATS knows it.
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

    /// How long the marker of an ended key stays, in buckets whose keys end:
    /// a watcher that is cut off for less still learns of the end.
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

/// A stream or bucket that could not be made as it must be.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// A stream.
    #[error("create stream {name}")]
    Stream {
        /// Which one.
        name: String,
        /// NATS's words.
        source: CreateStreamError,
    },
    /// A bucket.
    #[error("create bucket {name}")]
    Bucket {
        /// Which one.
        name: &'static str,
        /// NATS's words.
        source: async_nats::jetstream::context::CreateKeyValueError,
    },
}

impl ProvisionError {
    /// Whether a bus that is still starting may say so: no leader yet, too few servers yet.
    fn is_passing(&self) -> bool {
        let kind = match self {
            Self::Stream { source, .. } => Some(source.kind()),
            Self::Bucket { source, .. } => match source.kind() {
                CreateKeyValueErrorKind::TimedOut => return true,
                // What the stream under a bucket met, or the question for the account before it.
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

/// What a cluster answers before its servers have found each other: no suitable
/// peers, temporarily unavailable, not the leader, insufficient resources,
/// stream offline (nats-server `server/errors.json`).
const INCOMPLETE_CLUSTER: [u64; 5] = [10005, 10008, 10009, 10023, 10118];
/// Between two attempts to make or to find a stream.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often people hear what is waited for.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Makes every stream and bucket, or changes those that exist to today's
/// settings. What may pass by itself is tried again until `patience` is over.
pub(crate) async fn provision(
    js: &Context,
    config: &BusConfig,
    patience: Duration,
) -> Result<(), ProvisionError> {
    let started = Instant::now();
    while let Err(error) = provision_once(js, config).await {
        if !error.is_passing() || patience <= started.elapsed() {
            return Err(error);
        }
        warn!(error = %chain(&error), "NATS is not ready for streams yet, trying again");
        tokio::time::sleep(LOOK_EVERY).await;
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

/// Waits until every stream and bucket is there and has a leader that answers.
pub(crate) async fn provisioned(js: &Context, config: &BusConfig) {
    let streams = streams(config).into_iter().map(|stream| stream.name);
    let buckets = BucketName::ALL.iter().map(|bucket| format!("KV_{}", bucket.as_str()));
    let mut told = None;
    for name in streams.chain(buckets) {
        while let Err(error) = js.get_stream(&name).await {
            if told.is_none_or(|told: Instant| TOLD_EVERY <= told.elapsed()) {
                told = Some(Instant::now());
                warn!(stream = %name, error = %chain(&error), "waiting for a stream; `qiyu provision` makes it");
            }
            tokio::time::sleep(LOOK_EVERY).await;
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
    // What the log can replace need not be on disk before it is confirmed: a
    // server that syncs always would sync every acknowledgement, too.
    let unsynced = (config.profile == Profile::Durable && config.replicas == 1)
        .then_some(PersistenceMode::Async);
    vec![
        Config {
            name: IN.into(),
            // One by one, so that a partition can be taken out and moved to a further stream.
            subjects: Partition::all().map(subject::partition).collect(),
            max_age: config.retain,
            max_message_size: LOG_MESSAGE_BYTES_MAX,
            ..base()
        },
        Config {
            name: OUT.into(),
            subjects: vec!["im.out.>".into()],
            // Never Interest: it confirms what it throws away.
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
