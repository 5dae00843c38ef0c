//! Everything the record holds about one message.

use anyhow::{Context as _, bail};
use qiyu_fanout::past::fold_at;
use qiyu_nats::{Bus, log::LogEntry};
use qiyu_schema::{
    AppId, ClientMsgId, ConnId, Incarnation, MsgId, Partition, RoomId, UserId,
    event::{Event, Record, Sender},
    id::WorkerId,
    ledger::{DispatchKind, Exception, Outcome, Via},
    sanction::SanctionEntry,
};
use serde::Serialize;

use super::{follow, ledger};

/// The trace of one message, from its acceptance to its outcomes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct MessageTrace {
    pub(super) msg_id: MsgId,
    pub(super) partition: String,
    pub(super) app: AppId,
    #[serde(flatten)]
    pub(super) kind: MessageKind,
    /// `None`: the system itself, for example at the automatic closing of a room.
    pub(super) sender: Option<Submission>,
    /// By the writer's clock; the other times are by the server's. All in ms since
    /// 1970.
    pub(super) accepted_ms: u64,
    pub(super) stored_ms: u64,
    #[serde(rename = "fate")]
    pub(super) decision: Decision,
    /// The connections of its audience, as the fold knew them right before it.
    pub(super) audience: Vec<AudienceMember>,
    /// The deliveries the fold planned, at once and later.
    pub(super) dispatches: Vec<PlannedDelivery>,
    pub(super) handovers: Vec<RecordedDispatch>,
    pub(super) outcomes: Vec<GatewayOutcome>,
    pub(super) departures: Vec<Departure>,
    pub(super) gateways_gone: Vec<GatewayEnd>,
    pub(super) left_behind: Vec<UnackedReport>,
    /// The first acknowledgement of a direct message by its recipient.
    pub(super) taken: Option<RecipientAck>,
    /// The expiry of a direct message that was never acknowledged.
    #[serde(rename = "forgotten")]
    pub(super) expiry: Option<Expiry>,
    /// Reads over HTTP.
    pub(super) readings: Vec<HttpRead>,
    /// Further facts about the user in question.
    pub(super) about: Option<UserContext>,
    /// The extent of the search.
    pub(super) searched: SearchExtent,
}

/// The kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum MessageKind {
    /// A message to a room.
    #[serde(rename = "said")]
    Room { room: RoomId, biz_code: i32 },
    /// A direct message.
    #[serde(rename = "whispered")]
    Direct { to: UserId, biz_code: i32 },
    /// The closing of a room, which is sent to its members.
    Closing { room: RoomId },
}

impl MessageKind {
    pub(super) fn room(self) -> Option<RoomId> {
        match self {
            Self::Room { room, .. } | Self::Closing { room } => Some(room),
            Self::Direct { .. } => None,
        }
    }
}

/// The sender, and the connection used.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Submission {
    /// `None`: an integrator's server.
    pub(super) user: Option<UserId>,
    /// `None`: closings and messages of a server do not come through a socket.
    pub(super) through: Option<Ingress>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Ingress {
    pub(super) gateway: Incarnation,
    pub(super) connection: ConnId,
    pub(super) client_msg_id: Option<ClientMsgId>,
}

/// The decision of the fold about it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "decided", rename_all = "snake_case")]
pub(super) enum Decision {
    /// It was sent to its audience.
    Delivered,
    /// It had no recipient.
    #[serde(rename = "unheard")]
    NoRecipient,
    /// Its room had been closed before.
    RoomClosed { closed: MsgId },
    /// Its sender had used the clientMsgId before: the first message counts.
    #[serde(rename = "repeated")]
    Duplicate { first: MsgId },
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct AudienceMember {
    pub(super) user: UserId,
    pub(super) gateway: Incarnation,
    pub(super) connection: ConnId,
    /// The event of its join. `None`: the message was for the user, not for a room.
    pub(super) joined: Option<MsgId>,
}

/// One envelope planned by the fold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct PlannedDelivery {
    pub(super) to: Incarnation,
    pub(super) because: SendCause,
    /// By the server's clock.
    pub(super) at_ms: u64,
    /// The recipients, where the envelope names them.
    pub(super) connections: Vec<(ConnId, Option<UserId>)>,
}

/// The cause of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "because", rename_all = "snake_case")]
pub(super) enum SendCause {
    /// The message itself.
    #[serde(rename = "said")]
    Message,
    /// The recipient logged in.
    Login { event: MsgId },
    /// A recipient without an acknowledgement left, or a gateway died, and the user is
    /// back.
    Return { event: MsgId },
    /// A user entered a closed room.
    Late { event: MsgId },
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct RecordedDispatch {
    pub(super) worker: WorkerId,
    pub(super) epoch: u64,
    pub(super) at_ms: u64,
    pub(super) to: Option<Incarnation>,
    pub(super) how: DispatchKind,
    pub(super) because: Option<MsgId>,
}

/// The outcome at one gateway.
#[derive(Clone, Debug, Serialize)]
pub(super) struct GatewayOutcome {
    pub(super) gateway: Incarnation,
    pub(super) at_ms: u64,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

impl GatewayOutcome {
    /// Whether it can be the outcome of this delivery.
    pub(super) fn answers(&self, dispatch: &PlannedDelivery) -> bool {
        let via = self.outcome.via;
        self.gateway == dispatch.to
            && match dispatch.because {
                SendCause::Return { .. } => via == Via::Repeat,
                SendCause::Late { .. } => via == Via::Late,
                SendCause::Message | SendCause::Login { .. } => {
                    matches!(via, Via::Envelope | Via::Log)
                }
            }
    }

    /// Returns the number of connections that did not acknowledge and are not named.
    pub(super) fn unnamed(&self) -> u64 {
        let not = u64::from(self.outcome.given_up) + u64::from(self.outcome.left);
        not.saturating_sub(u64::try_from(self.outcome.exceptions.len()).unwrap_or(u64::MAX))
    }

    pub(super) fn exception(&self, connection: ConnId) -> Option<&Exception> {
        self.outcome.exceptions.iter().find(|e| e.connection == connection)
    }
}

/// A connection of the audience that left the room.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Departure {
    pub(super) user: UserId,
    pub(super) gateway: Incarnation,
    pub(super) connection: ConnId,
    pub(super) at_ms: u64,
    /// The last message its gateway had handled for it. `None`: an older build does not
    /// say.
    pub(super) heard: Option<MsgId>,
}

/// The end of a gateway to which it was sent.
#[derive(Clone, Debug, Serialize)]
pub(super) struct GatewayEnd {
    pub(super) gateway: Incarnation,
    pub(super) at_ms: u64,
}

/// It was reported unacknowledged at a gateway that its recipients had left.
#[derive(Clone, Debug, Serialize)]
pub(super) struct UnackedReport {
    pub(super) gateway: Incarnation,
    pub(super) at_ms: u64,
    /// `None`: all members that the dead gateway had in the room.
    pub(super) users: Option<Vec<UserId>>,
    pub(super) sends: u32,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct RecipientAck {
    pub(super) gateway: Incarnation,
    pub(super) at_ms: u64,
}

/// The end of waiting without an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Expiry {
    pub(super) at_ms: u64,
    /// The newer message that displaced it. `None`: its age.
    pub(super) because: Option<MsgId>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct HttpRead {
    pub(super) user: UserId,
    pub(super) at_ms: u64,
    pub(super) way: ReadPath,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ReadPath {
    History,
    OfflinePull,
}

/// Further facts about one user, around the message.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct UserContext {
    /// The last join or leave before the message.
    pub(super) before: Option<MembershipStep>,
    /// The last join before the message.
    pub(super) entered: Option<MembershipStep>,
    /// The first join after the message.
    pub(super) after: Option<MembershipStep>,
    /// Sanctions against the user in the room at that time.
    pub(super) measures: Option<SanctionEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct MembershipStep {
    pub(super) at_ms: u64,
    pub(super) direction: Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Direction {
    Entered,
    Left,
    /// Lost with the gateway.
    Lost,
}

/// The searched part of the record.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct SearchExtent {
    /// The log was read up to this time, ms since 1970.
    pub(super) log_until_ms: u64,
    /// Outcomes and dispatches were read up to this time; resumes and reads up to now.
    pub(super) ledger_until_ms: u64,
}

impl MessageTrace {
    /// Reads the trace of `msg_id`; with `user`, also the joins and leaves of that
    /// user.
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
        let mut trace = Self::begin(&entry, record)?;
        let partition = partition_of(&entry)?;
        let fold = fold_at(bus, partition, entry.seq - 1).await?;
        follow::follow(bus, partition, &entry, fold, user, &mut trace).await?;
        if let (Some(user), Some(room)) = (user, trace.kind.room()) {
            let steps = follow::steps(bus, (trace.app, room), user, entry.seq).await?;
            let about = trace.about.get_or_insert_default();
            (about.before, about.entered) = (steps.last, steps.entered);
        }
        ledger::look(bus, &mut trace).await?;
        Ok(trace)
    }

    /// Starts a trace with the facts of the message's own entry.
    fn begin(entry: &LogEntry, record: Record) -> anyhow::Result<Self> {
        let through =
            |sender: Sender| Submission {
                user: sender.user,
                through: sender.gateway.zip(sender.connection).map(|(gateway, connection)| {
                    Ingress { gateway, connection, client_msg_id: sender.client_msg_id }
                }),
            };
        let (app, kind, sender) = match record.event {
            Event::RoomMessageSent { app, room, sender, biz_code, .. } => {
                (app, MessageKind::Room { room, biz_code }, Some(through(sender)))
            }
            Event::DirectMessageSent { app, to, sender, biz_code, .. } => {
                (app, MessageKind::Direct { to, biz_code }, Some(through(sender)))
            }
            Event::RoomClosed { app, room, by, .. } => {
                let by = by.map(|user| Submission { user: Some(user), through: None });
                (app, MessageKind::Closing { room }, by)
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
            kind,
            sender,
            accepted_ms: record.at_ms,
            stored_ms: entry.written_ms,
            decision: Decision::Delivered,
            audience: Vec::new(),
            dispatches: Vec::new(),
            handovers: Vec::new(),
            outcomes: Vec::new(),
            departures: Vec::new(),
            gateways_gone: Vec::new(),
            left_behind: Vec::new(),
            taken: None,
            expiry: None,
            readings: Vec::new(),
            about: None,
            searched: SearchExtent::default(),
        })
    }

    /// Returns the departure of a connection of the audience.
    pub(super) fn departure(
        &self,
        gateway: &Incarnation,
        connection: ConnId,
    ) -> Option<&Departure> {
        let is = |left: &&Departure| left.gateway == *gateway && left.connection == connection;
        self.departures.iter().find(is)
    }

    /// Returns the end of a gateway, if it ended.
    pub(super) fn gone(&self, gateway: &Incarnation) -> Option<&GatewayEnd> {
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
        Event::SanctionImposed { .. } | Event::SanctionLifted { .. } => "a measure against a user",
        Event::ContentRefused { .. } => "words that were refused for what they say",
        _ => "of a kind this build does not know",
    }
}
