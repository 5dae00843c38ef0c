//! Measures against users: kick, mute, ban, and their ends.

use std::sync::Arc;

use axum::{Json, extract::State};
use qiyu_nats::now_ms;
use qiyu_schema::{
    AppId, RoomId, UserId,
    command::{InForce, ListMeasures, Measures, Moderate, Pardon},
    measure::Measure,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Asked, Call, Failed, Failure, id, living, maybe_id};
use crate::edge::Edge;

/// Users on a page of measures, if nobody says how many, and at most.
const PAGE_MAX: u32 = 1000;

/// Against whom, where, for how long.
///
/// A field nobody knows is refused: a misspelt `seconds` would be for ever.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Against {
    /// Absent: the first of QIYU_APPS.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u32>)]
    app_id: Option<AppId>,
    #[serde(deserialize_with = "id")]
    #[schema(value_type = u64)]
    user_id: UserId,
    /// In this room, which must be open. Absent: in the whole app.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u64>)]
    room_id: Option<RoomId>,
    /// How long, in seconds. Absent, and without until: until it is lifted.
    #[serde(default)]
    seconds: Option<u64>,
    /// Until when, ms since 1970.
    #[serde(default)]
    until: Option<u64>,
    /// For people, at most 200 characters; the user sees it.
    #[serde(default)]
    reason: String,
}

/// Whose measure, where.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Of {
    /// Absent: the first of QIYU_APPS.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u32>)]
    app_id: Option<AppId>,
    #[serde(deserialize_with = "id")]
    #[schema(value_type = u64)]
    user_id: UserId,
    /// Absent: the one in the whole app.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u64>)]
    room_id: Option<RoomId>,
}

/// It is in the log, and gateways are being told.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Took {
    /// Its place in the log.
    msg_id: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Lifted {
    /// Whether there was anything to lift.
    lifted: bool,
}

/// Which measures to list.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AskMeasures {
    /// Absent: the first of QIYU_APPS.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u32>)]
    app_id: Option<AppId>,
    /// Those in this room. Absent: those in the whole app.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u64>)]
    room_id: Option<RoomId>,
    /// Only this user's.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u64>)]
    user_id: Option<UserId>,
    /// Only those of users above this one: the last of the page before.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u64>)]
    after: Option<UserId>,
    /// Users on the page, 1 to 1000; absent: 1000.
    #[serde(default)]
    limit: Option<u32>,
}

/// Mutes and bans in force, by user.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MeasureList {
    list: Vec<Standing>,
    has_next: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Standing {
    #[schema(value_type = u64)]
    user_id: UserId,
    /// mute or ban.
    #[schema(value_type = String)]
    measure: Measure,
    /// ms since 1970. null: until it is lifted.
    until: Option<u64>,
    reason: String,
    /// The anchor who did it. null: a server.
    #[schema(value_type = Option<u64>)]
    by: Option<UserId>,
    msg_id: String,
}

impl From<Measures> for MeasureList {
    fn from(found: Measures) -> Self {
        let list = found.list.into_iter().map(Standing::from).collect();
        Self { list, has_next: found.has_next }
    }
}

impl From<InForce> for Standing {
    fn from(found: InForce) -> Self {
        let InForce { user: user_id, measure, until_ms: until, reason, by, msg_id } = found;
        Self { user_id, measure, until, reason, by, msg_id: msg_id.to_string() }
    }
}

/// One verb of those that take a measure: its body, its route.
macro_rules! takes {
    ($(#[$doc:meta])* $verb:ident as $Body:ident at $path:literal) => {
        #[derive(Debug, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub(crate) struct $Body(Against);

        impl Call for $Body {
            type Answer = Took;

            async fn answer(self, edge: &Edge) -> Result<Took, Failed> {
                take(edge, Measure::$Body, self.0).await
            }
        }

        $(#[$doc])*
        #[utoipa::path(post, path = $path, tag = "server", security(("apiKey" = [])), request_body = Against, responses(
            (status = 200, description = "In the log; enforced within two seconds", body = Took),
            (status = 400, description = "The body is wrong", body = Failure),
            (status = 401, description = "The key is wrong", body = Failure),
            (status = 404, description = "The room is not open", body = Failure),
        ))]
        pub(super) async fn $verb(
            State(edge): State<Arc<Edge>>,
            asked: Asked<$Body>,
        ) -> Result<Json<Took>, Failed> {
            asked.answered(&edge).await
        }
    };
}

takes!(
    /// Closes a user's connections with 3502; they may come back.
    kick as Kick at "/server/kick"
);
takes!(
    /// Refuses what a user says with 4010.
    mute as Mute at "/server/mute"
);
takes!(
    /// Closes a user's connections with 3504; they may not come back.
    ban as Ban at "/server/ban"
);

/// One verb of those that lift a measure.
macro_rules! lifts {
    ($(#[$doc:meta])* $verb:ident as $Body:ident of $Measure:ident at $path:literal) => {
        #[derive(Debug, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub(crate) struct $Body(Of);

        impl Call for $Body {
            type Answer = Lifted;

            async fn answer(self, edge: &Edge) -> Result<Lifted, Failed> {
                let Of { app_id, user_id: user, room_id: room } = self.0;
                let app = edge.app_of(app_id).map_err(Failed::asked)?;
                let pardon = Pardon { app, room, user, measure: Measure::$Measure, by: None };
                Ok(Lifted { lifted: living(edge, &pardon).await? })
            }
        }

        $(#[$doc])*
        #[utoipa::path(post, path = $path, tag = "server", security(("apiKey" = [])), request_body = Of, responses(
            (status = 200, description = "Whether there was anything to lift", body = Lifted),
            (status = 400, description = "The body is wrong", body = Failure),
            (status = 401, description = "The key is wrong", body = Failure),
            (status = 404, description = "The room is not open", body = Failure),
        ))]
        pub(super) async fn $verb(
            State(edge): State<Arc<Edge>>,
            asked: Asked<$Body>,
        ) -> Result<Json<Lifted>, Failed> {
            asked.answered(&edge).await
        }
    };
}

lifts!(
    /// Lifts a mute.
    unmute as Unmute of Mute at "/server/unmute"
);
lifts!(
    /// Lifts a ban.
    unban as Unban of Ban at "/server/unban"
);

/// Lists the mutes and bans in force.
#[utoipa::path(post, path = "/server/measures", tag = "server", security(("apiKey" = [])), request_body = AskMeasures, responses(
    (status = 200, description = "A page of them", body = MeasureList),
    (status = 400, description = "The body is wrong", body = Failure),
    (status = 401, description = "The key is wrong", body = Failure),
    (status = 404, description = "The room is not open", body = Failure),
))]
pub(super) async fn measures(
    State(edge): State<Arc<Edge>>,
    asked: Asked<AskMeasures>,
) -> Result<Json<MeasureList>, Failed> {
    asked.answered(&edge).await
}

impl Call for AskMeasures {
    type Answer = MeasureList;

    async fn answer(self, edge: &Edge) -> Result<MeasureList, Failed> {
        let AskMeasures { app_id, room_id: room, user_id: user, after, limit } = self;
        let app = edge.app_of(app_id).map_err(Failed::asked)?;
        let limit = limit.unwrap_or(PAGE_MAX);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(Failed::asked("limit is 1 to 1000"));
        }
        let asked = ListMeasures { app, room, user, by: None, after, limit };
        living(edge, &asked).await.map(MeasureList::from)
    }
}

async fn take(edge: &Edge, measure: Measure, against: Against) -> Result<Took, Failed> {
    let Against { app_id, user_id: user, room_id: room, seconds, until, reason } = against;
    let app = edge.app_of(app_id).map_err(Failed::asked)?;
    let until_ms = ends(seconds, until).map_err(Failed::asked)?;
    let moderate = Moderate { app, room, user, measure, until_ms, reason, by: None };
    let msg_id = living(edge, &moderate).await?;
    Ok(Took { msg_id: msg_id.to_string() })
}

/// When a measure ends, said in one of two ways.
pub(crate) fn ends(seconds: Option<u64>, until: Option<u64>) -> Result<Option<u64>, &'static str> {
    match (seconds, until) {
        (Some(_), Some(_)) => Err("give either seconds or until"),
        (Some(0), None) => Err("seconds is at least 1"),
        (Some(seconds), None) => Ok(Some(now_ms().saturating_add(seconds.saturating_mul(1000)))),
        (None, until) => Ok(until),
    }
}
