//! Reads the live state: the owners' folds, the buckets, the tables.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use qiyu_fanout::{fold::Thing, past};
use qiyu_living::Claim;
use qiyu_nats::{Bus, chain, stream::BucketName};
use qiyu_presence::{Gateways, Sessions};
use qiyu_schema::{
    Partition, codec,
    command::{SurveyFold, fold_group},
    room::{RoomCounts, RoomEntry},
    sanction::{self, SanctionEntry},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    SystemState, VerifyScope,
    key::{
        ItemKey, Projection, shown_anchor, shown_claim, shown_counts, shown_kept, shown_measures,
        shown_named, shown_record, shown_room, shown_sessions,
    },
};

/// Items of one response of an owner.
const PAGE: u32 = 10_000;
/// Owners queried concurrently.
const CONCURRENT_REQUESTS_MAX: usize = 8;
/// Retries for a partition whose owner does not respond: it may be changing owners, which
/// takes six seconds after a sudden death.
const RETRIES_MAX: u32 = 10;
/// Pause between two retries.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Snapshots compared for each partition: those a new owner would use.
const SNAPSHOTS_MAX: usize = 3;

/// A part of a fold at one position.
#[derive(Clone, Debug)]
pub(super) struct FoldPage {
    pub(super) position: u64,
    /// `None`: of the owner; else of the snapshot at this sequence.
    pub(super) snapshot: Option<u64>,
    pub(super) after: Option<Thing>,
    /// `None`: to the end.
    pub(super) last: Option<Thing>,
    pub(super) things: BTreeMap<Thing, u64>,
}

impl FoldPage {
    pub(super) fn key(&self, partition: Partition, thing: Thing) -> ItemKey {
        match self.snapshot {
            None => ItemKey::Live(partition, thing),
            Some(position) => ItemKey::Snapshot(partition, position, thing),
        }
    }

    /// Whether the page would hold `thing`, if it existed.
    pub(super) fn covers(&self, thing: Thing) -> bool {
        self.after.is_none_or(|after| after < thing) && self.last.is_none_or(|last| thing <= last)
    }
}

/// Projections that could not be checked, and the reasons.
pub(super) type Unchecked = BTreeMap<Projection, String>;

/// Reads the owners' folds and the newest snapshots, by partition and position.
pub(super) async fn pages(
    bus: &Bus,
    scope: &VerifyScope,
    at_ms: u64,
    unchecked: &mut Unchecked,
    unreadable: &mut BTreeSet<(Projection, String)>,
) -> HashMap<Partition, Vec<FoldPage>> {
    let mut asked = stream::iter(scope.partitions())
        .map(|partition| async move {
            let owners = match scope.running {
                SystemState::Running => survey(bus, partition, at_ms).await,
                SystemState::Stopped => Ok(Vec::new()),
            };
            (partition, owners, snapshots(bus, partition, at_ms).await)
        })
        .buffer_unordered(CONCURRENT_REQUESTS_MAX);
    let mut found: HashMap<Partition, Vec<FoldPage>> = HashMap::new();
    while let Some((partition, owners, snapshots)) = asked.next().await {
        let snapshots = snapshots.map(|(pages, damaged)| {
            let named = |at| format!("the snapshot of {partition} at {at}");
            unreadable.extend(damaged.into_iter().map(|at| (Projection::Snapshots, named(at))));
            pages
        });
        for (projection, pages) in
            [(Projection::Membership, owners), (Projection::Snapshots, snapshots)]
        {
            match pages {
                Ok(pages) => found.entry(partition).or_default().extend(pages),
                Err(reason) => drop(unchecked.insert(projection, reason)),
            }
        }
    }
    for pages in found.values_mut() {
        pages.sort_by_key(|page| page.position);
    }
    found
}

/// Reads the fold of a partition's owner.
async fn survey(bus: &Bus, partition: Partition, at_ms: u64) -> Result<Vec<FoldPage>, String> {
    let mut pages: Vec<FoldPage> = Vec::new();
    let mut tries = 0;
    loop {
        let after = pages.last().and_then(|page| page.last);
        let asked = SurveyFold { at_ms, after: after.map(|thing| thing.to_string()), limit: PAGE };
        let answer = match bus.request(&fold_group(partition), &asked).await {
            Ok(answer) => answer,
            Err(error) if RETRIES_MAX <= tries => {
                return Err(format!("the owner of {partition} does not answer: {}", chain(&error)));
            }
            Err(_) => {
                tries += 1;
                tokio::time::sleep(RETRY_INTERVAL).await;
                continue;
            }
        };
        let thing = |(name, hash): (String, u64)| Some((name.parse::<Thing>().ok()?, hash));
        let things: BTreeMap<Thing, u64> = answer.things.into_iter().filter_map(thing).collect();
        let last = things.keys().last().copied().filter(|_| answer.has_next);
        let position = answer.position;
        pages.push(FoldPage { position, snapshot: None, after, last, things });
        if last.is_none() {
            return Ok(pages);
        }
    }
}

/// Reads the newest snapshots, and the positions of those that cannot be read.
async fn snapshots(
    bus: &Bus,
    partition: Partition,
    at_ms: u64,
) -> Result<(Vec<FoldPage>, Vec<u64>), String> {
    let failed = |error: past::PastError| chain(&error);
    let positions = past::snapshots(bus, partition).await.map_err(failed)?;
    let newest = positions.len().saturating_sub(SNAPSHOTS_MAX);
    let (mut pages, mut unreadable) = (Vec::new(), Vec::new());
    for position in positions.into_iter().skip(newest) {
        let fold = past::snapshot_at(bus, partition, position).await.map_err(failed)?;
        let Some(fold) = fold else {
            // It may have been replaced by a newer one meanwhile.
            let now = past::snapshots(bus, partition).await.map_err(failed)?;
            unreadable.extend(now.contains(&position).then_some(position));
            continue;
        };
        let (things, _) = fold.survey(at_ms, None, usize::MAX);
        let (after, last, snapshot) = (None, None, Some(position));
        pages.push(FoldPage { position, snapshot, after, last, things });
    }
    Ok((pages, unreadable))
}

/// Contents of the buckets and tables: for each item the accepted forms of its value, the
/// fullest first.
#[derive(Clone, Debug, Default)]
pub(super) struct StoredItems {
    pub(super) things: BTreeMap<ItemKey, Vec<String>>,
    /// Entries that cannot be decoded, so that even their item is unknown.
    pub(super) unreadable: BTreeSet<(Projection, String)>,
}

/// Reads the buckets and the tables.
pub(super) async fn stored_items(
    bus: &Bus,
    scope: &VerifyScope,
    at_ms: u64,
    unchecked: &mut Unchecked,
) -> StoredItems {
    let mut held = StoredItems::default();
    let mut failed = |projections: &[Projection], reason: String| {
        unchecked.extend(projections.iter().map(|projection| (*projection, reason.clone())));
    };
    if let Err(reason) = rooms(bus, &mut held).await {
        failed(&[Projection::Rooms, Projection::Anchors, Projection::Moderation], reason);
    }
    if let Err(reason) = measures(bus, at_ms, &mut held).await {
        failed(&[Projection::Moderation], reason);
    }
    if scope.room.is_none()
        && let Err(reason) = inboxes(bus, &mut held).await
    {
        failed(&[Projection::Inbox], reason);
    }
    if scope.running == SystemState::Running {
        if let Err(reason) = counts(bus, &mut held).await {
            failed(&[Projection::Counters], reason);
        }
        if let Err(reason) = presence(bus, &mut held).await {
            failed(&[Projection::Presence], reason);
        }
    }
    if let Err(reason) = tables(scope, &mut held).await {
        failed(&[Projection::Table, Projection::Records], reason);
    }
    held
}

async fn rooms(bus: &Bus, held: &mut StoredItems) -> Result<(), String> {
    let listed = bus.bucket(BucketName::Rooms).list().await.map_err(|error| chain(&error))?;
    for (key, slot) in listed {
        let Some((app, room)) = pair(&key) else { continue };
        let entry = slot.value.and_then(|value| codec::decode::<RoomEntry>(&value).ok());
        let shown = entry.map_or_else(
            || vec!["not readable".to_owned()],
            |e| {
                let named = shown_named(e.anchor, e.room_type, &e.name, &e.cover);
                let full = shown_room(&named, e.opened);
                vec![full, shown_anchor(e.anchor)]
            },
        );
        held.things.insert(ItemKey::Room(app, room), shown);
    }
    let listed = bus.bucket(BucketName::Anchors).list().await.map_err(|error| chain(&error))?;
    for (key, slot) in listed {
        let Some((app, anchor)) = pair(&key) else { continue };
        let claim = slot.value.and_then(|value| codec::decode::<Claim>(&value).ok());
        match claim {
            Some(claim) => {
                held.things.insert(ItemKey::Anchor(app, claim.room, anchor), vec![shown_claim()]);
            }
            None => {
                held.unreadable.insert((Projection::Anchors, format!("anchor {key}")));
            }
        }
    }
    Ok(())
}

async fn measures(bus: &Bus, at_ms: u64, held: &mut StoredItems) -> Result<(), String> {
    let listed = bus.bucket(BucketName::Sanctions).list().await.map_err(|error| chain(&error))?;
    for (key, slot) in listed {
        let Some((app, room, user)) = sanction::parse_key(&key) else { continue };
        let entry = slot.value.and_then(|value| codec::decode::<SanctionEntry>(&value).ok());
        let shown = match entry {
            Some(entry) => shown_measures(&entry, at_ms),
            None => Some("not readable".to_owned()),
        };
        if let Some(shown) = shown {
            held.things.insert(ItemKey::Measure(app, room, user), vec![shown]);
        }
    }
    Ok(())
}

async fn inboxes(bus: &Bus, held: &mut StoredItems) -> Result<(), String> {
    let mut reader = bus.read_inboxes().await.map_err(|error| chain(&error))?;
    while let Some((app, user, msg_id)) = reader.next().await.map_err(|error| chain(&error))? {
        held.things.insert(ItemKey::Kept(app, user, msg_id), vec![shown_kept()]);
    }
    reader.close().await;
    Ok(())
}

async fn counts(bus: &Bus, held: &mut StoredItems) -> Result<(), String> {
    let listed = bus.bucket(BucketName::Watch).list().await.map_err(|error| chain(&error))?;
    for (key, slot) in listed {
        let Some((app, room)) = pair(&key) else { continue };
        let counts = slot.value.and_then(|value| codec::decode::<RoomCounts>(&value).ok());
        let shown = counts.map_or_else(
            || "not readable".to_owned(),
            |counts| shown_counts(counts.watch_num, counts.good_num),
        );
        held.things.insert(ItemKey::Counts(app, room), vec![shown]);
    }
    Ok(())
}

async fn presence(bus: &Bus, held: &mut StoredItems) -> Result<(), String> {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let _until_read = stop.clone().drop_guard();
    let gateways = Gateways::follow(bus, &tasks, stop).await.map_err(|error| chain(&error))?;
    let everybody = Sessions::new(bus, gateways).all().await.map_err(|error| chain(&error))?;
    for ((app, user), sessions) in everybody {
        let session = |s: qiyu_presence::Session| format!("{} of {}", s.connection, s.gateway);
        let shown = sessions.map_or_else(
            || "not readable".to_owned(),
            |sessions| {
                let sessions: BTreeSet<String> = sessions.into_iter().map(session).collect();
                shown_sessions(sessions.into_iter().collect())
            },
        );
        held.things.insert(ItemKey::Presence(app, user), vec![shown]);
    }
    Ok(())
}

async fn tables(scope: &VerifyScope, held: &mut StoredItems) -> Result<(), String> {
    let tables =
        qiyu_living::read_tables(&scope.database_url).await.map_err(|error| chain(&error))?;
    for row in tables.open {
        let named = shown_named(row.anchor, row.room_type, &row.name, &row.cover);
        let full = shown_room(&named, row.opened);
        held.things.insert(ItemKey::Row(row.app, row.room), vec![full, shown_anchor(row.anchor)]);
    }
    for row in tables.records {
        let named = shown_named(row.anchor, row.room_type, &row.name, &row.cover);
        let shown = |by_anchor: &str| shown_record(by_anchor, row.closed, row.closed_at_ms);
        let shown = vec![shown(&named), shown(&shown_anchor(row.anchor))];
        held.things.insert(ItemKey::Record(row.app, row.room), shown);
    }
    for row in tables.unreadable {
        let projection = match row.table {
            qiyu_living::RoomTable::Open => Projection::Table,
            qiyu_living::RoomTable::Records => Projection::Records,
        };
        held.unreadable.insert((projection, format!("{row}")));
    }
    Ok(())
}

/// Parses the two ids of a key such as `10001.7`.
fn pair<A: std::str::FromStr, B: std::str::FromStr>(key: &str) -> Option<(A, B)> {
    let (first, second) = key.split_once('.')?;
    Some((first.parse().ok()?, second.parse().ok()?))
}
