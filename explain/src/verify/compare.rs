//! Compares the live state with the log while both change.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use qiyu_fanout::fold::Effect;
use qiyu_nats::{Bus, log::LogEntry};
use qiyu_schema::{
    MsgId, Partition,
    command::{ListMembers, fold_group},
    event::Record,
};

use super::{
    SystemState, VerifyScope,
    accounting::{Accounting, AccountingReport},
    divergence::find_divergences,
    key::{ItemKey, PartitionState, Projection, shown_hash},
    live::{FoldPage, StoredItems, Unchecked, pages, stored_items},
    rebuild::{NoObserver, Observer, RebuiltFolds},
    report::{Difference, VerifyReport},
};

/// The live state trails the log by moments. A difference counts when it was there at every
/// poll and the live value has not changed meanwhile. The polls last longer than a
/// partition may lack an owner after a sudden death.
const LOOKS_MAX: usize = 12;
/// Pause between two polls. An owner writes counts once a second, if they have changed.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Members requested when a room differs.
const MEMBERS_MAX: u32 = 1000;

/// The live and the expected value of an item; `None` means "not there".
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ComparedItem {
    pub(super) live: Option<Vec<String>>,
    pub(super) expected: Option<String>,
    /// The last event that counts; 0: the end of the log.
    pub(super) until: u64,
}

impl ComparedItem {
    /// Whether the live value is one of the accepted forms of the expected one.
    pub(super) fn agrees(&self, expected: Option<&String>) -> bool {
        match (&self.live, expected) {
            (None, None) => true,
            (Some(live), Some(expected)) => live.contains(expected),
            _ => false,
        }
    }
}

/// A comparison in progress.
pub(super) struct Comparison {
    rebuilt: RebuiltFolds,
    scope: VerifyScope,
    at_ms: u64,
    differing: BTreeMap<ItemKey, ComparedItem>,
    /// Items that cannot be decoded.
    unreadable: BTreeSet<(Projection, String)>,
    counts: BTreeMap<Projection, u64>,
    events: u64,
    unchecked: Unchecked,
    accounting: Accounting,
}

impl Comparison {
    /// Queries the owners, applies the log, and compares the folds at the positions of
    /// the owners' responses.
    pub(super) async fn begin(bus: &Bus, scope: &VerifyScope) -> anyhow::Result<Self> {
        let at_ms = qiyu_nats::now_ms();
        let (mut unchecked, mut unreadable) = (Unchecked::new(), BTreeSet::new());
        // Queried before the log is read, so that the log is read beyond every
        // response.
        let pages = pages(bus, scope, at_ms, &mut unchecked, &mut unreadable).await;
        let mut rebuilt = RebuiltFolds::begin(bus, &scope.partitions()).await?;
        let mut turning = FoldComparer::new(pages, at_ms, scope);
        let events = rebuilt.advance(bus, &mut turning).await?;
        turning.finish(&rebuilt);
        let FoldComparer { differing, counts, accounting, .. } = turning;
        let scope = scope.clone();
        Ok(Self {
            rebuilt,
            scope,
            at_ms,
            differing,
            unreadable,
            counts,
            events,
            unchecked,
            accounting,
        })
    }

    /// Compares buckets and tables until every difference is certain.
    pub(super) async fn confirm_differences(&mut self, bus: &Bus) -> anyhow::Result<()> {
        let mut suspects: Option<BTreeMap<ItemKey, ComparedItem>> = None;
        let mut unreadable: Option<BTreeSet<(Projection, String)>> = None;
        for look in 0..LOOKS_MAX {
            if 0 < look {
                tokio::time::sleep(POLL_INTERVAL).await;
                self.events += self.rebuilt.advance(bus, &mut NoObserver).await?;
            }
            let mut unchecked = Unchecked::new();
            let held = stored_items(bus, &self.scope, self.at_ms, &mut unchecked).await;
            let mut now = self.differences(&held);
            now.retain(|key, _| !unchecked.contains_key(&key.projection()));
            if let Some(before) = suspects {
                // A value that has changed meanwhile is only late.
                now.retain(|key, pair| before.get(key).is_some_and(|old| old.live == pair.live));
                // An item that cannot be read now stays a suspect.
                let now_unreadable = |key: &ItemKey| unchecked.contains_key(&key.projection());
                now.extend(before.into_iter().filter(|(key, _)| now_unreadable(key)));
            }
            // The room of an unreadable bucket entry is unknown.
            let now_unreadable = match self.scope.room {
                None => held.unreadable,
                Some(_) => BTreeSet::new(),
            };
            let now_unreadable = match unreadable {
                None => now_unreadable,
                Some(before) => before.intersection(&now_unreadable).cloned().collect(),
            };
            let done = now.is_empty() && now_unreadable.is_empty() && unchecked.is_empty();
            (suspects, unreadable) = (Some(now), Some(now_unreadable));
            if done || look + 1 == LOOKS_MAX {
                self.unchecked.append(&mut unchecked);
                break;
            }
        }
        let unchecked = &self.unchecked;
        let mut certain = suspects.unwrap_or_default();
        certain.retain(|key, _| !unchecked.contains_key(&key.projection()));
        self.differing.append(&mut certain);
        self.unreadable.extend(unreadable.unwrap_or_default());
        Ok(())
    }

    fn differences(&mut self, held: &StoredItems) -> BTreeMap<ItemKey, ComparedItem> {
        let mut keys: BTreeSet<ItemKey> = held.things.keys().copied().collect();
        keys.extend(self.rebuilt.states().flat_map(PartitionState::keys));
        if let Some(room) = self.scope.room {
            keys.retain(|key| key.room() == Some(room));
        }
        if self.scope.running == SystemState::Stopped {
            keys.retain(|key| {
                !matches!(key.projection(), Projection::Presence | Projection::Counters)
            });
        }
        let mut counts: BTreeMap<Projection, u64> = BTreeMap::new();
        let mut differing = BTreeMap::new();
        for key in keys {
            let Some(state) = self.rebuilt.state(key.partition()) else { continue };
            if is_beyond_the_log(key, state) {
                continue;
            }
            *counts.entry(key.projection()).or_default() += 1;
            let (live, expected) =
                (held.things.get(&key).cloned(), key.expected(state, self.at_ms));
            let live = live.or_else(|| unwritten(key));
            let pair = ComparedItem { live, expected, until: 0 };
            let nothing_inside = pair.expected.is_none() && is_unwritten(key, &pair.live);
            if !pair.agrees(pair.expected.as_ref()) && !nothing_inside {
                differing.insert(key, pair);
            }
        }
        self.counts.extend(counts);
        differing
    }

    /// Returns gaps in the log and items that cannot be decoded.
    fn further(&mut self) -> Vec<Difference> {
        let difference = |projection, key, live: &str, log: &str| Difference {
            projection,
            key,
            live: Some(live.to_owned()),
            log: Some(log.to_owned()),
            detail: None,
            parted: None,
        };
        if self.rebuilt.is_whole() {
            self.counts.insert(Projection::Log, self.events);
        }
        let unreadable = std::mem::take(&mut self.unreadable);
        let unreadable = unreadable
            .into_iter()
            .map(|(of, key)| difference(of, key, "not readable", "cannot be compared with it"));
        let gaps = self.rebuilt.gaps().iter().map(|(first, last)| {
            let (first, last) = (MsgId::at(*first), MsgId::at(*last));
            let key = match first == last {
                true => format!("event {first}"),
                false => format!("the events {first} to {last}"),
            };
            difference(Projection::Log, key, "missing", "has what was before and after")
        });
        unreadable.chain(gaps).collect()
    }

    /// Checks the conservation law.
    pub(super) async fn accounting(&self, bus: &Bus) -> anyhow::Result<AccountingReport> {
        self.accounting.hold(bus, &self.rebuilt).await
    }

    /// Builds the report, with the events at which the differences diverge from the
    /// log.
    pub(super) async fn report(mut self, bus: &Bus) -> anyhow::Result<VerifyReport> {
        let further = self.further();
        let mut report = VerifyReport {
            position: self.rebuilt.position(),
            events: self.events,
            checked: self.counts,
            unchecked: self.unchecked,
            ..VerifyReport::default()
        };
        let parted = find_divergences(bus, &self.differing, self.at_ms).await?;
        for (key, pair) in &self.differing {
            let detail = self.rebuilt.state(key.partition()).map(|state| (key, state));
            let detail = match detail {
                Some((ItemKey::Live(..), state)) => member_difference(bus, key, state).await,
                _ => None,
            };
            report.differences.push(Difference {
                projection: key.projection(),
                key: key.to_string(),
                live: pair.live.as_ref().and_then(|live| live.first().cloned()),
                log: pair.expected.clone(),
                detail,
                parted: parted.get(key).cloned(),
            });
        }
        report.differences.extend(further);
        Ok(report)
    }
}

/// Whether the log cannot judge an item: rooms that ended before it begins, claims of rooms
/// that never opened, remains of closed rooms.
fn is_beyond_the_log(key: ItemKey, state: &PartitionState) -> bool {
    match key {
        ItemKey::Record(app, room) => {
            let known = state.rooms.get(&(app, room));
            state.open(app, room).is_none() && known.is_none_or(|known| known.closed.is_none())
        }
        ItemKey::Anchor(app, room, _) => {
            let known = state.rooms.get(&(app, room));
            state.fold.standing(app, room).is_none() && known.is_none()
        }
        // Read, or displaced by newer ones: it ends with its age.
        ItemKey::Kept(app, user, msg_id) => !state.fold.is_kept(app, user, msg_id),
        // Room ids are never used again, so remains of a closed room do no harm.
        ItemKey::Measure(app, Some(room), _) => state.open(app, room).is_none(),
        _ => false,
    }
}

/// Returns the value equal to an absent item: the counts of a room without any join are
/// never written.
fn unwritten(key: ItemKey) -> Option<Vec<String>> {
    matches!(key, ItemKey::Counts(..)).then(|| vec![super::key::shown_counts(0, 0)])
}

fn is_unwritten(key: ItemKey, live: &Option<Vec<String>>) -> bool {
    unwritten(key).is_some_and(|unwritten| live.as_ref() == Some(&unwritten))
}

/// Describes members that only one side knows, as of now.
async fn member_difference(bus: &Bus, key: &ItemKey, state: &PartitionState) -> Option<String> {
    let (app, room) = key.room()?;
    let asked = ListMembers { app, room, after: None, limit: MEMBERS_MAX };
    let live = bus.request(&fold_group(key.partition()), &asked).await.ok()?.users;
    let (log, _) = state.fold.members(app, room, None, usize::try_from(MEMBERS_MAX).ok()?);
    let only = |these: &[qiyu_schema::UserId], those: &[qiyu_schema::UserId]| {
        let these = these.iter().filter(|user| !those.contains(user));
        these.map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let (ghosts, missing) = (only(&live, &log), only(&log, &live));
    let ghosts = (!ghosts.is_empty())
        .then(|| format!("inside it is {ghosts}, of whom the log knows nothing there"));
    let missing = (!missing.is_empty()).then(|| format!("missing from it is {missing}"));
    let told: Vec<String> = [ghosts, missing].into_iter().flatten().collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// Compares the owners' pages as the fold passes their positions.
struct FoldComparer {
    pages: HashMap<Partition, std::collections::VecDeque<FoldPage>>,
    at_ms: u64,
    room: Option<(qiyu_schema::AppId, qiyu_schema::RoomId)>,
    differing: BTreeMap<ItemKey, ComparedItem>,
    counts: BTreeMap<Projection, u64>,
    accounting: Accounting,
}

impl FoldComparer {
    fn new(pages: HashMap<Partition, Vec<FoldPage>>, at_ms: u64, scope: &VerifyScope) -> Self {
        let pages = pages.into_iter().map(|(partition, pages)| (partition, pages.into())).collect();
        let (differing, counts) = (BTreeMap::new(), BTreeMap::new());
        let (room, accounting) = (scope.room, Accounting::new(at_ms, scope));
        Self { pages, at_ms, room, differing, counts, accounting }
    }

    /// Compares the pages of `partition` from before `seq`.
    fn compare_until(&mut self, partition: Partition, state: &PartitionState, seq: u64) {
        let Some(pages) = self.pages.get_mut(&partition) else { return };
        let mut due = Vec::new();
        while pages.front().is_some_and(|page| page.position < seq) {
            due.extend(pages.pop_front());
        }
        for page in due {
            self.compare(partition, state, &page);
        }
    }

    fn compare(&mut self, partition: Partition, state: &PartitionState, page: &FoldPage) {
        let (expected, _) = state.fold.survey(self.at_ms, page.after, usize::MAX);
        let things: BTreeSet<_> = page.things.keys().chain(expected.keys()).copied().collect();
        for thing in things.into_iter().filter(|thing| page.covers(*thing)) {
            let key = page.key(partition, thing);
            if self.room.is_some() && key.room() != self.room {
                continue;
            }
            *self.counts.entry(key.projection()).or_default() += 1;
            let (live, should) = (page.things.get(&thing), expected.get(&thing));
            if live != should {
                let live = live.map(|hash| vec![shown_hash(*hash)]);
                let expected = should.map(|hash| shown_hash(*hash));
                self.differing.insert(key, ComparedItem { live, expected, until: page.position });
            }
        }
    }

    /// Compares the pages behind the last event.
    fn finish(&mut self, rebuilt: &RebuiltFolds) {
        let partitions: Vec<Partition> = self.pages.keys().copied().collect();
        for partition in partitions {
            if let Some(state) = rebuilt.state(partition) {
                self.compare_until(partition, state, u64::MAX);
            }
        }
    }
}

impl Observer for FoldComparer {
    fn before(
        &mut self,
        partition: Partition,
        state: &PartitionState,
        entry: &LogEntry,
        record: &Record,
    ) {
        self.compare_until(partition, state, entry.seq);
        self.accounting.before(entry, record);
    }

    fn after(&mut self, state: &PartitionState, entry: &LogEntry, effects: &[Effect]) {
        self.accounting.after(state, entry, effects);
    }
}
