//! Enforcing measures: who may not speak is refused, who may not come in is
//! turned away, who is inside is shown out.
//!
//! What holds is in a copy of the bucket `measures`. A change acts on the
//! connections that are there; whoever comes later meets the checks at the door.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use qiyu_nats::bucket::{Mirror, Slot};
use qiyu_schema::{
    AppId, MsgId, RoomId, UserId, codec,
    event::Ending,
    measure::{self, MeasureEntry, Taken},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    delivery::connection::{Close, Connection},
    frame::{Message, biz},
    session::registry::Serving,
};

/// Between looks at the copy while it changes: a burst of measures is one look.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// The measures in force, as this gateway knows them.
#[derive(Clone)]
pub(crate) struct Measures(Mirror);

impl Measures {
    pub(crate) fn new(mirror: Mirror) -> Self {
        Self(mirror)
    }

    /// Whether the user may not speak there. No room: to anybody.
    pub(crate) fn is_muted(&self, app: AppId, room: Option<RoomId>, user: UserId) -> bool {
        let now_ms = qiyu_nats::now_ms();
        self.any(app, room, user, |entry| entry.is_muted(now_ms))
    }

    /// Whether the user may not be there. No room: nowhere.
    pub(crate) fn is_banned(&self, app: AppId, room: Option<RoomId>, user: UserId) -> bool {
        let now_ms = qiyu_nats::now_ms();
        self.any(app, room, user, |entry| entry.is_banned(now_ms))
    }

    fn any(
        &self,
        app: AppId,
        room: Option<RoomId>,
        user: UserId,
        holds: impl Fn(&MeasureEntry) -> bool,
    ) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let of = |room| entry(self.0.get(&measure::key(app, room, user)).as_deref());
        of(None).is_some_and(|e| holds(&e))
            || room.is_some_and(|room| of(Some(room)).is_some_and(|e| holds(&e)))
    }
}

/// What an entry meant when it was last looked at.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    revision: u64,
    entry: MeasureEntry,
}

/// What a change means for connections that are there.
#[derive(Debug, Default, PartialEq)]
struct News {
    /// Shown out since.
    kicked: Option<Taken>,
    /// May not be there any more.
    banned: Option<Taken>,
    /// May not speak any more, or may again.
    mute: Option<Option<Taken>>,
}

impl News {
    fn of(before: &MeasureEntry, after: &MeasureEntry, now_ms: u64) -> Self {
        let id = |taken: &Option<Taken>| taken.as_ref().map(|taken| taken.msg_id);
        let newer = |a: Option<MsgId>, b: Option<MsgId>| a < b;
        let banned = after.ban.clone().filter(|ban| ban.holds(now_ms));
        let mute = after.mute.clone().filter(|mute| mute.holds(now_ms));
        Self {
            kicked: after.kick.clone().filter(|_| newer(id(&before.kick), id(&after.kick))),
            banned: banned.filter(|_| newer(id(&before.ban), id(&after.ban))),
            mute: (id(&before.mute) != id(&mute)).then_some(mute),
        }
    }
}

/// Acts on every change of the measures until `stop`.
pub(crate) async fn heed(serving: Arc<Serving>, stop: CancellationToken) {
    let mirror = serving.measures.0.clone();
    let mut changes = mirror.changes();
    // Nobody is here yet: what holds already is met at the door.
    let mut seen = HashMap::new();
    look(&mirror, &mut seen, |_, _, _, _| {});
    while stop.run_until_cancelled(changes.changed()).await.is_some_and(|alive| alive.is_ok()) {
        look(&mirror, &mut seen, |app, room, user, news| serving.enforce(app, room, user, &news));
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Compares the copy with what was seen, and tells the difference.
fn look(
    mirror: &Mirror,
    seen: &mut HashMap<String, Seen>,
    mut tell: impl FnMut(AppId, Option<RoomId>, UserId, News),
) {
    let now_ms = qiyu_nats::now_ms();
    let all = mirror.all();
    let there: HashSet<String> = all.iter().map(|(key, _)| key.clone()).collect();
    seen.retain(|key, _| there.contains(key));
    for (key, Slot { revision, value }) in all {
        let known = seen.entry(key.clone()).or_default();
        if known.revision == revision {
            continue;
        }
        let Some(after) = entry(value.as_deref()) else { continue };
        let news = News::of(&known.entry, &after, now_ms);
        *known = Seen { revision, entry: after };
        if let (Some((app, room, user)), true) = (measure::parse_key(&key), news != News::default())
        {
            tell(app, room, user, news);
        }
    }
}

fn entry(value: Option<&[u8]>) -> Option<MeasureEntry> {
    codec::decode(value?).ok()
}

impl Serving {
    /// Acts on a measure against those of the user's connections that are here.
    fn enforce(&self, app: AppId, room: Option<RoomId>, user: UserId, news: &News) {
        let theirs =
            |connection: &Arc<Connection>| connection.who.app == app && connection.who.user == user;
        let connections: Vec<_> = self.connections().into_iter().filter(theirs).collect();
        let inside = |c: &&Arc<Connection>| room.is_none() || c.room() == room;
        if let Some(mute) = &news.mute {
            let notice = Arc::new(mute_notice(app, room, mute.as_ref()));
            connections.iter().for_each(|connection| connection.notice(&notice));
        }
        if let Some(ban) = &news.banned {
            connections.iter().filter(inside).for_each(|c| show_out(c, Ending::Banned, ban));
        } else if let Some(kick) = &news.kicked {
            connections.iter().filter(inside).for_each(|c| show_out(c, Ending::Kicked, kick));
        }
        if !connections.is_empty() {
            info!(%app, ?room, %user, connections = connections.len(), ?news, "measure enforced");
        }
    }

    /// Whoever was banned while they were let in goes again.
    pub(crate) fn turn_away_banned(&self, connection: &Connection) {
        let who = &connection.who;
        if self.measures.is_banned(who.app, connection.room(), who.user) {
            connection.close(Close::new(Ending::Banned, 3504, "banned").saying("kicked"));
        }
    }
}

fn show_out(connection: &Arc<Connection>, ending: Ending, taken: &Taken) {
    let (code, what) = match ending {
        Ending::Banned => (3504, "banned"),
        _ => (3502, "kicked"),
    };
    let reason = match taken.reason.as_str() {
        "" => what.to_owned(),
        reason => format!("{what}: {reason}"),
    };
    connection.close(Close::new(ending, code, reason).saying("kicked"));
}

fn mute_notice(app: AppId, room: Option<RoomId>, mute: Option<&Taken>) -> Message {
    let mut data = json!({
        "muted": mute.is_some(),
        "until": mute.and_then(|mute| mute.until_ms),
        "reason": mute.map(|mute| mute.reason.as_str()).unwrap_or_default(),
    });
    if let (Some(room), Some(fields)) = (room, data.as_object_mut()) {
        fields.insert("roomId".into(), room.get().into());
    }
    Message::new(app, biz::MUTED, &data.to_string(), None)
}

#[cfg(test)]
mod tests {
    use qiyu_schema::measure::Measure;

    use super::*;

    fn taken(seq: u64, until_ms: Option<u64>) -> Taken {
        Taken { msg_id: MsgId::at(seq), at_ms: 0, until_ms, reason: String::new(), by: None }
    }

    fn entry(steps: &[(Measure, Option<Taken>, u64)]) -> MeasureEntry {
        let mut entry = MeasureEntry::default();
        for (measure, taken, seq) in steps {
            match taken {
                Some(taken) => entry.take(*measure, taken.clone()),
                None => entry.lift(*measure, MsgId::at(*seq)),
            };
        }
        entry
    }

    #[test]
    fn only_what_is_new_acts_on_those_who_are_here() {
        use Measure::{Ban, Kick, Mute};
        let (none, mute, ban) = (MeasureEntry::default(), taken(1, None), taken(2, Some(100)));
        let muted = entry(&[(Mute, Some(mute.clone()), 1)]);
        let unmuted = entry(&[(Mute, Some(mute.clone()), 1), (Mute, None, 2)]);
        let banned = entry(&[(Mute, Some(mute.clone()), 1), (Ban, Some(ban.clone()), 2)]);
        let kicked = entry(&[(Kick, Some(taken(3, None)), 3)]);
        let again = entry(&[(Kick, Some(taken(4, None)), 4)]);
        let mute_news = |mute| News { mute: Some(mute), ..News::default() };
        for (before, after, news) in [
            (&none, &none, News::default()),
            (&none, &muted, mute_news(Some(mute))),
            (&muted, &muted, News::default()),
            (&muted, &unmuted, mute_news(None)),
            (&muted, &banned, News { banned: Some(ban), ..News::default() }),
            (&none, &kicked, News { kicked: Some(taken(3, None)), ..News::default() }),
            (&kicked, &kicked, News::default()),
            (&kicked, &again, News { kicked: Some(taken(4, None)), ..News::default() }),
        ] {
            assert_eq!(News::of(before, after, 50), news, "{before:?} {after:?}");
        }
        assert_eq!(News::of(&muted, &banned, 100), News::default(), "it is over already");
    }
}
