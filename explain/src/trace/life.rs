//! Everything the record holds about one message.

use anyhow::{Context as _, bail};
use qiyu_fanout::past::fold_at;
use qiyu_nats::{Bus, log::LogEntry};
use qiyu_schema::{
    AppId, ClientMsgId, ConnId, Incarnation, MsgId, Partition, RoomId, UserId,
    event::{Event, Record, Sender},
    id::WorkerId,
    ledger::{Exception, How, Outcome, Via},
    measure::MeasureEntry,
};
use serde::Serialize;

use super::{after, ledger};

/// One message, from its acceptance to whatever became of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Life {
    pub(super) msg_id: MsgId,
    pub(super) partition: String,
    pub(super) app: AppId,
    #[serde(flatten)]
    pub(super) what: What,
    /// `None`: the system itself, as when a room closes by itself.
    pub(super) sender: Option<Accepted>,
    /// By its writer's clock, as the next ones by the server's; all ms since 1970.
    pub(super) accepted_ms: u64,
    pub(super) stored_ms: u64,
    pub(super) fate: Fate,
    /// Connections it was for, as the fold knew them right before it.
    pub(super) audience: Vec<Hearer>,
    /// What the fold made of it, then and later.
    pub(super) dispatches: Vec<Dispatch>,
    pub(super) handovers: Vec<HandedOver>,
    pub(super) outcomes: Vec<Settled>,
    pub(super) departures: Vec<Departure>,
    pub(super) gateways_gone: Vec<Gone>,
    pub(super) left_behind: Vec<LeftBehind>,
    /// When some connection of the recipient of a 1:1 message acknowledged it.
    pub(super) taken: Option<Taken>,
    /// When a 1:1 message ceased to wait without having been acknowledged.
    pub(super) forgotten: Option<Forgotten>,
    /// Who read it over HTTP.
    pub(super) readings: Vec<Reading>,
    /// What else is known of the user that was asked about.
    pub(super) about: Option<About>,
    /// How far the search went.
    pub(super) searched: Searched,
}

/// What kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum What {
    /// Said in a room.
    Said { room: RoomId, biz_code: i32 },
    /// Written to one user.
    Whispered { to: UserId, biz_code: i32 },
    /// The closing of a room, which its members hear of.
    Closing { room: RoomId },
}

impl What {
    pub(super) fn room(self) -> Option<RoomId> {
        match self {
            Self::Said { room, .. } | Self::Closing { room } => Some(room),
            Self::Whispered { .. } => None,
        }
    }
}

/// Who sent it, and through what.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Accepted {
    /// `None`: a server of an integrator.
    pub(super) user: Option<UserId>,
    /// `None`: neither a closing nor what a server says comes through a socket.
    pub(super) through: Option<Through>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Through {
    pub(super) gateway: Incarnation,
    pub(super) connection: ConnId,
    pub(super) client_msg_id: Option<ClientMsgId>,
}

/// What the fold decided about it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "decided", rename_all = "snake_case")]
pub(super) enum Fate {
    /// It went to whoever was there.
    Delivered,
    /// There was nobody to hear it.
    Unheard,
    /// Its room had been closed before.
    RoomClosed { closed: MsgId },
    /// Its sender had used its name before: the first copy counts.
    Repeated { first: MsgId },
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Hearer {
    pub(super) user: UserId,
    pub(super) gateway: Incarnation,
    pub(super) connection: ConnId,
    /// The event it entered with. `None`: it was for the user, not for a room.
    pub(super) joined: Option<MsgId>,
}

/// One envelope the fold asked for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Dispatch {
    pub(super) to: Incarnation,
    pub(super) because: Because,
    /// By the server's clock.
    pub(super) at_ms: u64,
    /// For whom, where the envelope names them.
    pub(super) connections: Vec<(ConnId, Option<UserId>)>,
}

/// Why a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "because", rename_all = "snake_case")]
pub(super) enum Because {
    /// It was said.
    Said,
    /// Its recipient logged in.
    Login { event: MsgId },
    /// Somebody who owed it left, or a gateway died, and they are back.
    Return { event: MsgId },
    /// Somebody entered a closed room.
    Late { event: MsgId },
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct HandedOver {
    pub(super) worker: WorkerId,
    pub(super) epoch: u64,
    pub(super) at_ms: u64,
    pub(super) to: Option<Incarnation>,
    pub(super) how: How,
    pub(super) because: Option<MsgId>,
}

/// How it ended at one gateway.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Settled {
    pub(super) gateway: Incarnation,
    pub(super) at_ms: u64,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

impl Settled {
    /// Whether it can be the outcome of this sending.
    pub(super) fn answers(&self, dispatch: &Dispatch) -> bool {
        let via = self.outcome.via;
        self.gateway == dispatch.to
            && match dispatch.because {
                Because::Return { .. } => via == Via::Repeat,
                Because::Late { .. } => via == Via::Late,
                Because::Said | Because::Login { .. } => matches!(via, Via::Envelope | Via::Log),
            }
    }

    /// Connections that did not acknowledge and are not named.
    pub(super) fn unnamed(&self) -> u64 {
        let not = u64::from(self.outcome.given_up) + u64::from(self.outcome.left);
        not.saturating_sub(u64::try_from(self.outcome.exceptions.len()).unwrap_or(u64::MAX))
    }

    pub(super) fn exception(&self, connection: ConnId) -> Option<&Exception> {
        self.outcome.exceptions.iter().find(|e| e.connection == connection)
    }
}

/// A connection of the audience that left.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Departure {
    pub(super) user: UserId,
    pub(super) gateway: Incarnation,
    pub(super) connection: ConnId,
    pub(super) at_ms: u64,
    /// The last message it was there for, at its gateway. `None`: an older build's word.
    pub(super) heard: Option<MsgId>,
}

/// The end of a gateway that it was sent to.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Gone {
    pub(super) gateway: Incarnation,
    pub(super) at_ms: u64,
}

/// It was found unacknowledged where its recipients had left.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LeftBehind {
    pub(super) gateway: Incarnation,
    pub(super) at_ms: u64,
    /// `None`: all the dead gateway had in the room.
    pub(super) users: Option<Vec<UserId>>,
    pub(super) sends: u32,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Taken {
    pub(super) gateway: Incarnation,
    pub(super) at_ms: u64,
}

/// It waits for nobody any more.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Forgotten {
    pub(super) at_ms: u64,
    /// The newer message that took its place. `None`: its age did.
    pub(super) because: Option<MsgId>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Reading {
    pub(super) user: UserId,
    pub(super) at_ms: u64,
    pub(super) way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    History,
    OfflinePull,
}

/// What else the record knows of one user, around the message.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct About {
    /// The last time they entered or left the room before it.
    pub(super) before: Option<Step>,
    /// The last time they entered it before.
    pub(super) entered: Option<Step>,
    /// The first time they entered the room after it.
    pub(super) after: Option<Step>,
    /// Measures against them in the room at that moment.
    pub(super) measures: Option<MeasureEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Step {
    pub(super) at_ms: u64,
    pub(super) direction: Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Direction {
    Entered,
    Left,
    /// With their gateway.
    Lost,
}

/// What was looked at; what is not there was not in it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Searched {
    /// The log up to this time, ms since 1970.
    pub(super) log_until_ms: u64,
    /// Outcomes and hand-overs up to this time; resumes and readings up to now.
    pub(super) ledger_until_ms: u64,
}

impl Life {
    /// Reads everything about `msg_id`; with `user`, also where they were.
    pub(super) async fn read(
        bus: &Bus,
        msg_id: MsgId,
        user: Option<UserId>,
    ) -> anyhow::Result<Self> {
        if MsgId::at(msg_id.seq()) != msg_id || msg_id.seq() == 0 {
            bail!("{msg_id} is no id of this log; ids are in receipts and in every message");
        }
        let entry = bus.read_one(msg_id).await?;
        let Some(entry) = entry else { bail!(absence(bus, msg_id).await?) };
        let record = entry.record().context("read what stands at this place in the log")?;
        let mut life = Self::begin(&entry, record)?;
        let partition = partition_of(&entry)?;
        let fold = fold_at(bus, partition, entry.seq - 1).await?;
        after::follow(bus, partition, &entry, fold, user, &mut life).await?;
        if let (Some(user), Some(room)) = (user, life.what.room()) {
            let steps = after::steps(bus, (life.app, room), user, entry.seq).await?;
            let about = life.about.get_or_insert_default();
            (about.before, about.entered) = (steps.last, steps.entered);
        }
        ledger::look(bus, &mut life).await?;
        Ok(life)
    }

    /// What its own entry tells.
    fn begin(entry: &LogEntry, record: Record) -> anyhow::Result<Self> {
        let through =
            |sender: Sender| Accepted {
                user: sender.user,
                through: sender.gateway.zip(sender.connection).map(|(gateway, connection)| {
                    Through { gateway, connection, client_msg_id: sender.client_msg_id }
                }),
            };
        let (app, what, sender) = match record.event {
            Event::RoomMessageSent { app, room, sender, biz_code, .. } => {
                (app, What::Said { room, biz_code }, Some(through(sender)))
            }
            Event::DirectMessageSent { app, to, sender, biz_code, .. } => {
                (app, What::Whispered { to, biz_code }, Some(through(sender)))
            }
            Event::RoomClosed { app, room, by, .. } => {
                let by = by.map(|user| Accepted { user: Some(user), through: None });
                (app, What::Closing { room }, by)
            }
            other => bail!(
                "what stands at this place is no message but {}: it was delivered to nobody",
                name_of(&other)
            ),
        };
        Ok(Self {
            msg_id: entry.msg_id(),
            partition: partition_of(entry)?.to_string(),
            app,
            what,
            sender,
            accepted_ms: record.at_ms,
            stored_ms: entry.written_ms,
            fate: Fate::Delivered,
            audience: Vec::new(),
            dispatches: Vec::new(),
            handovers: Vec::new(),
            outcomes: Vec::new(),
            departures: Vec::new(),
            gateways_gone: Vec::new(),
            left_behind: Vec::new(),
            taken: None,
            forgotten: None,
            readings: Vec::new(),
            about: None,
            searched: Searched::default(),
        })
    }

    /// When a connection it was for left the room.
    pub(super) fn departure(
        &self,
        gateway: &Incarnation,
        connection: ConnId,
    ) -> Option<&Departure> {
        let is = |left: &&Departure| left.gateway == *gateway && left.connection == connection;
        self.departures.iter().find(is)
    }

    /// When a gateway ended, if it did.
    pub(super) fn gone(&self, gateway: &Incarnation) -> Option<&Gone> {
        self.gateways_gone.iter().find(|gone| gone.gateway == *gateway)
    }
}

fn partition_of(entry: &LogEntry) -> anyhow::Result<Partition> {
    entry.partition().with_context(|| format!("find the partition of {}", entry.subject))
}

async fn absence(bus: &Bus, msg_id: MsgId) -> anyhow::Result<String> {
    let (first, last) = bus.log_bounds().await?;
    Ok(match msg_id.seq() {
        seq if seq < first => format!(
            "{msg_id} is older than the log, which begins with {}: QIYU_RETAIN says how long it \
             is kept",
            MsgId::at(first)
        ),
        seq if last < seq => {
            format!("{msg_id} was never given: the log ends with {}", MsgId::at(last))
        }
        _ => format!("the log has nothing at {msg_id} any more"),
    })
}

fn name_of(event: &Event) -> &'static str {
    match event {
        Event::RoomOpened { .. } => "the opening of a room",
        Event::BusinessSent { .. } => "something for an integrator's own consumer",
        Event::RoomLiked { .. } => "likes of a room",
        Event::MembersChanged { .. } => "who entered and left a room",
        Event::SessionsChanged { .. } => "who logged in and out",
        Event::Unacknowledged { .. } => "a note of what was left unacknowledged",
        Event::GatewayGone { .. } => "the end of a gateway",
        Event::MeasureTaken { .. } | Event::MeasureLifted { .. } => "a measure against a user",
        Event::ContentRefused { .. } => "words that were refused for what they say",
        _ => "of a kind this build does not know",
    }
}
