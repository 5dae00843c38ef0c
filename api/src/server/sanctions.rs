//! `/server/kick` and the other calls about sanctions: impose, lift, list.

use std::sync::Arc;

use axum::{Json, extract::State};
use qiyu_nats::now_ms;
use qiyu_schema::{
    AppId, RoomId, UserId,
    command::{ActiveSanction, ImposeSanction, LiftSanction, ListSanctions, SanctionPage},
    sanction::SanctionKind,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    call::{Authorized, ServerCall, command_living},
    error::{ServerError, ServerErrorBody},
    ids::{id, maybe_id},
};
use crate::{context::ApiContext, texts};

/// Users on a page, also without a limit in the request.
const PAGE_MAX: u32 = 1000;

/// The sanctioned user, the place, and the duration.
///
/// An unknown field is refused: a misspelt `seconds` would make the sanction endless.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(
    as = Against,
    description = "Against whom, where, for how long.\n\nA field nobody knows is refused: a misspelt `seconds` would be for ever.",
)]
pub(crate) struct SanctionTarget {
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

/// A sanction to lift: its user and place.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = Of, description = "Whose measure, where.")]
pub(crate) struct SanctionRef {
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

/// The sanction is stored in the log, and gateways are about to get it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Took, description = "It is in the log, and gateways are being told.")]
pub(crate) struct SanctionImposed {
    /// Its place in the log.
    msg_id: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Lifted)]
pub(crate) struct SanctionLifted {
    /// Whether there was anything to lift.
    lifted: bool,
}

/// The filter and the page of a list of sanctions.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = AskMeasures, description = "Which measures to list.")]
pub(crate) struct ListSanctionsRequest {
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
#[schema(as = MeasureList)]
pub(crate) struct SanctionList {
    list: Vec<SanctionInForce>,
    has_next: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Standing)]
pub(crate) struct SanctionInForce {
    #[schema(value_type = u64)]
    user_id: UserId,
    /// mute or ban.
    #[schema(value_type = String)]
    #[serde(rename = "measure")]
    sanction: SanctionKind,
    /// ms since 1970. null: until it is lifted.
    until: Option<u64>,
    reason: String,
    /// The anchor who did it. null: a server.
    #[schema(value_type = Option<u64>)]
    by: Option<UserId>,
    msg_id: String,
}

impl From<SanctionPage> for SanctionList {
    fn from(found: SanctionPage) -> Self {
        let list = found.list.into_iter().map(SanctionInForce::from).collect();
        Self { list, has_next: found.has_next }
    }
}

impl From<ActiveSanction> for SanctionInForce {
    fn from(found: ActiveSanction) -> Self {
        let ActiveSanction { user: user_id, sanction, until_ms: until, reason, by, msg_id } = found;
        Self { user_id, sanction, until, reason, by, msg_id: msg_id.to_string() }
    }
}

/// Makes the request and the route of a call that imposes a sanction.
macro_rules! imposes {
    ($(#[$doc:meta])* $verb:ident($summary:literal) as $Body:ident of $Kind:ident at $path:literal) => {
        #[derive(Debug, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub(crate) struct $Body(SanctionTarget);

        impl ServerCall for $Body {
            type Response = SanctionImposed;

            async fn handle(self, context: &ApiContext) -> Result<SanctionImposed, ServerError> {
                impose(context, SanctionKind::$Kind, self.0).await
            }
        }

        $(#[$doc])*
        #[utoipa::path(post, path = $path, summary = $summary, tag = "server", security(("apiKey" = [])), request_body = SanctionTarget, responses(
            (status = 200, description = "In the log; enforced within two seconds", body = SanctionImposed),
            (status = 400, description = "The body is wrong", body = ServerErrorBody),
            (status = 401, description = "The key is wrong", body = ServerErrorBody),
            (status = 404, description = "The room is not open", body = ServerErrorBody),
        ))]
        pub(super) async fn $verb(
            State(context): State<Arc<ApiContext>>,
            call: Authorized<$Body>,
        ) -> Result<Json<SanctionImposed>, ServerError> {
            call.respond(&context).await
        }
    };
}

imposes!(
    /// Closes a user's connections with 3502. The user may log in again.
    kick("Closes a user's connections with 3502; they may come back.") as KickRequest of Kick at "/server/kick"
);
imposes!(
    /// Refuses a user's messages with 4010.
    mute("Refuses what a user says with 4010.") as MuteRequest of Mute at "/server/mute"
);
imposes!(
    /// Closes a user's connections with 3504. The user may not log in again.
    ban("Closes a user's connections with 3504; they may not come back.") as BanRequest of Ban at "/server/ban"
);

/// Makes the request and the route of a call that lifts a sanction.
macro_rules! lifts {
    ($(#[$doc:meta])* $verb:ident as $Body:ident of $Kind:ident at $path:literal) => {
        #[derive(Debug, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub(crate) struct $Body(SanctionRef);

        impl ServerCall for $Body {
            type Response = SanctionLifted;

            async fn handle(self, context: &ApiContext) -> Result<SanctionLifted, ServerError> {
                let SanctionRef { app_id, user_id: user, room_id: room } = self.0;
                let app = context.app_or_default(app_id).map_err(ServerError::bad_request)?;
                let command = LiftSanction { app, room, user, sanction: SanctionKind::$Kind, by: None };
                Ok(SanctionLifted { lifted: command_living(context, &command).await? })
            }
        }

        $(#[$doc])*
        #[utoipa::path(post, path = $path, tag = "server", security(("apiKey" = [])), request_body = SanctionRef, responses(
            (status = 200, description = "Whether there was anything to lift", body = SanctionLifted),
            (status = 400, description = "The body is wrong", body = ServerErrorBody),
            (status = 401, description = "The key is wrong", body = ServerErrorBody),
            (status = 404, description = "The room is not open", body = ServerErrorBody),
        ))]
        pub(super) async fn $verb(
            State(context): State<Arc<ApiContext>>,
            call: Authorized<$Body>,
        ) -> Result<Json<SanctionLifted>, ServerError> {
            call.respond(&context).await
        }
    };
}

lifts!(
    /// Lifts a mute.
    unmute as UnmuteRequest of Mute at "/server/unmute"
);
lifts!(
    /// Lifts a ban.
    unban as UnbanRequest of Ban at "/server/unban"
);

/// Lists the mutes and bans in force.
#[utoipa::path(post, path = "/server/measures", tag = "server", security(("apiKey" = [])), request_body = ListSanctionsRequest, responses(
    (status = 200, description = "A page of them", body = SanctionList),
    (status = 400, description = "The body is wrong", body = ServerErrorBody),
    (status = 401, description = "The key is wrong", body = ServerErrorBody),
    (status = 404, description = "The room is not open", body = ServerErrorBody),
))]
pub(super) async fn measures(
    State(context): State<Arc<ApiContext>>,
    call: Authorized<ListSanctionsRequest>,
) -> Result<Json<SanctionList>, ServerError> {
    call.respond(&context).await
}

impl ServerCall for ListSanctionsRequest {
    type Response = SanctionList;

    async fn handle(self, context: &ApiContext) -> Result<SanctionList, ServerError> {
        let ListSanctionsRequest { app_id, room_id: room, user_id: user, after, limit } = self;
        let app = context.app_or_default(app_id).map_err(ServerError::bad_request)?;
        let limit = limit.unwrap_or(PAGE_MAX);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(ServerError::bad_request(texts::server::BAD_LIMIT));
        }
        let command = ListSanctions { app, room, user, by: None, after, limit };
        command_living(context, &command).await.map(SanctionList::from)
    }
}

async fn impose(
    context: &ApiContext,
    sanction: SanctionKind,
    target: SanctionTarget,
) -> Result<SanctionImposed, ServerError> {
    let SanctionTarget { app_id, user_id: user, room_id: room, seconds, until, reason } = target;
    let app = context.app_or_default(app_id).map_err(ServerError::bad_request)?;
    let until_ms = end_of_sanction(seconds, until).map_err(ServerError::bad_request)?;
    let command = ImposeSanction { app, room, user, sanction, until_ms, reason, by: None };
    let msg_id = command_living(context, &command).await?;
    Ok(SanctionImposed { msg_id: msg_id.to_string() })
}

/// Returns the end of a sanction, which is given in one of two ways.
pub(crate) fn end_of_sanction(
    seconds: Option<u64>,
    until: Option<u64>,
) -> Result<Option<u64>, &'static str> {
    match (seconds, until) {
        (Some(_), Some(_)) => Err(texts::server::SECONDS_AND_UNTIL),
        (Some(0), None) => Err(texts::server::NO_SECONDS),
        (Some(seconds), None) => Ok(Some(now_ms().saturating_add(seconds.saturating_mul(1000)))),
        (None, until) => Ok(until),
    }
}
