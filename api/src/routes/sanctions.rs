//! `/living/kick` and the other routes about sanctions, which a room's anchor imposes in it.

use std::sync::Arc;

use axum::extract::State;
use qiyu_schema::{
    RoomId, UserId,
    command::{ImposeSanction, LiftSanction, ListSanctions},
    sanction::SanctionKind,
};

use super::parameters::{malformed, room_id, user_id};
use crate::{
    caller::LoggedIn,
    context::ApiContext,
    params::{Params, RequestedId},
    response::{ApiError, Nothing, ResponseBody, Success, SuccessWithoutData},
    server::{SanctionList, end_of_sanction},
    texts,
};

/// Users in one list.
const LIST_MAX: u32 = 1000;

/// Makes a route that imposes a sanction.
macro_rules! imposes {
    ($(#[$doc:meta])* $verb:ident($summary:literal) as $Kind:ident at $path:literal) => {
        $(#[$doc])*
        #[utoipa::path(post, path = $path, summary = $summary, tag = "living", security(("login" = [])), params(
            ("roomId" = u64, Query, description = "The caller's own open room"),
            ("userId" = u64, Query, description = "Against whom"),
            ("seconds" = Option<u64>, Query, description = "How long; absent: until it is lifted or the room closes"),
            ("until" = Option<u64>, Query, description = "Instead of seconds: until when, ms since 1970"),
            ("reason" = Option<String>, Query, description = "For people, at most 200 characters; the user sees it"),
        ), responses((status = 200, description = "code 200, or 400, 401, 403 (not the anchor), 404 (not open)", body = ResponseBody<Nothing>)))]
        pub(crate) async fn $verb(
            State(context): State<Arc<ApiContext>>,
            LoggedIn(identity): LoggedIn,
            params: Params,
        ) -> Result<SuccessWithoutData, ApiError> {
            impose(&context, identity.user, SanctionKind::$Kind, &params).await
        }
    };
}

imposes!(
    /// Closes a viewer's connections. The viewer may come back.
    kick("Closes a viewer's connections; they may come back.") as Kick at "/living/kick"
);
imposes!(
    /// Refuses a viewer's messages in the room.
    mute("Refuses what a viewer says in the room.") as Mute at "/living/mute"
);
imposes!(
    /// Closes a viewer's connections in the room. The viewer may not come back.
    ban("Closes a viewer's connections into the room; they may not come back.") as Ban at "/living/ban"
);

/// Makes a route that lifts a sanction.
macro_rules! lifts {
    ($(#[$doc:meta])* $verb:ident of $Kind:ident at $path:literal) => {
        $(#[$doc])*
        #[utoipa::path(post, path = $path, tag = "living", security(("login" = [])), params(
            ("roomId" = u64, Query, description = "The caller's own open room"),
            ("userId" = u64, Query, description = "Whose"),
        ), responses((status = 200, description = "data: whether there was anything to lift", body = ResponseBody<bool>)))]
        pub(crate) async fn $verb(
            State(context): State<Arc<ApiContext>>,
            LoggedIn(identity): LoggedIn,
            params: Params,
        ) -> Result<Success<bool>, ApiError> {
            let (room, user) = (Some(own_room(&params)?), user_id(&params)?);
            let (app, sanction, by) = (context.app, SanctionKind::$Kind, Some(identity.user));
            context.command_living(&LiftSanction { app, room, user, sanction, by }).await.map(Success)
        }
    };
}

lifts!(
    /// Lifts a mute.
    unmute of Mute at "/living/unmute"
);
lifts!(
    /// Lifts a ban.
    unban of Ban at "/living/unban"
);

/// Lists the mutes and bans in force in the caller's own room.
#[utoipa::path(post, path = "/living/measures", tag = "living", security(("login" = [])), params(
    ("roomId" = u64, Query, description = "The caller's own open room"),
    ("userId" = Option<u64>, Query, description = "Only this user's"),
    ("after" = Option<u64>, Query, description = "Only those of users above this one"),
), responses((status = 200, description = "Up to a thousand users'", body = ResponseBody<SanctionList>)))]
pub(crate) async fn measures(
    State(context): State<Arc<ApiContext>>,
    LoggedIn(identity): LoggedIn,
    params: Params,
) -> Result<Success<SanctionList>, ApiError> {
    let (room, by) = (Some(own_room(&params)?), Some(identity.user));
    let user = params.parsed("userId").map_err(|_| malformed())?;
    let after = params.parsed("after").map_err(|_| malformed())?;
    let (app, limit) = (context.app, LIST_MAX);
    let found =
        context.command_living(&ListSanctions { app, room, user, by, after, limit }).await?;
    Ok(Success(found.into()))
}

async fn impose(
    context: &ApiContext,
    anchor: UserId,
    sanction: SanctionKind,
    params: &Params,
) -> Result<SuccessWithoutData, ApiError> {
    let (room, user) = (Some(own_room(params)?), user_id(params)?);
    let seconds = params.parsed("seconds").map_err(|_| malformed())?;
    let until = params.parsed("until").map_err(|_| malformed())?;
    let until_ms = end_of_sanction(seconds, until).map_err(|_| malformed())?;
    let reason = params.text("reason").unwrap_or_default().to_owned();
    let (app, by) = (context.app, Some(anchor));
    context
        .command_living(&ImposeSanction { app, room, user, sanction, until_ms, reason, by })
        .await?;
    Ok(SuccessWithoutData)
}

/// Reads the room. `living` checks that it is the caller's.
fn own_room(params: &Params) -> Result<RoomId, ApiError> {
    match room_id(params)? {
        RequestedId::Valid(room) => Ok(room),
        RequestedId::Impossible => Err(ApiError::new(404, texts::UNKNOWN_ROOM)),
    }
}
