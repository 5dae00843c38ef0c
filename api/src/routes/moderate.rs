//! `/living/mute` and its kin: the anchor of a room takes measures in it.

use std::sync::Arc;

use axum::extract::State;
use qiyu_schema::{
    RoomId, UserId,
    command::{ListMeasures, Moderate, Pardon},
    measure::Measure,
};

use crate::{
    answer::{Answer, Body, Done, Nothing, Refused},
    edge::Edge,
    identity::LoggedIn,
    params::{Asked, Params},
    server::{MeasureList, ends},
};

/// Users listed at once.
const LIST_MAX: u32 = 1000;

/// One verb of those that take a measure.
macro_rules! takes {
    ($(#[$doc:meta])* $verb:ident as $Measure:ident at $path:literal) => {
        $(#[$doc])*
        #[utoipa::path(post, path = $path, tag = "living", security(("login" = [])), params(
            ("roomId" = u64, Query, description = "The caller's own open room"),
            ("userId" = u64, Query, description = "Against whom"),
            ("seconds" = Option<u64>, Query, description = "How long; absent: until it is lifted or the room closes"),
            ("until" = Option<u64>, Query, description = "Instead of seconds: until when, ms since 1970"),
            ("reason" = Option<String>, Query, description = "For people, at most 200 characters; the user sees it"),
        ), responses((status = 200, description = "code 200, or 400, 401, 403 (not the anchor), 404 (not open)", body = Body<Nothing>)))]
        pub(crate) async fn $verb(
            State(edge): State<Arc<Edge>>,
            LoggedIn(who): LoggedIn,
            params: Params,
        ) -> Result<Done, Refused> {
            take(&edge, who.user, Measure::$Measure, &params).await
        }
    };
}

takes!(
    /// Closes a viewer's connections; they may come back.
    kick as Kick at "/living/kick"
);
takes!(
    /// Refuses what a viewer says in the room.
    mute as Mute at "/living/mute"
);
takes!(
    /// Closes a viewer's connections into the room; they may not come back.
    ban as Ban at "/living/ban"
);

/// One verb of those that lift a measure.
macro_rules! lifts {
    ($(#[$doc:meta])* $verb:ident of $Measure:ident at $path:literal) => {
        $(#[$doc])*
        #[utoipa::path(post, path = $path, tag = "living", security(("login" = [])), params(
            ("roomId" = u64, Query, description = "The caller's own open room"),
            ("userId" = u64, Query, description = "Whose"),
        ), responses((status = 200, description = "data: whether there was anything to lift", body = Body<bool>)))]
        pub(crate) async fn $verb(
            State(edge): State<Arc<Edge>>,
            LoggedIn(who): LoggedIn,
            params: Params,
        ) -> Result<Answer<bool>, Refused> {
            let (room, user) = (Some(room(&params)?), user(&params)?);
            let (app, measure, by) = (edge.app, Measure::$Measure, Some(who.user));
            edge.living(&Pardon { app, room, user, measure, by }).await.map(Answer)
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
), responses((status = 200, description = "Up to a thousand users'", body = Body<MeasureList>)))]
pub(crate) async fn measures(
    State(edge): State<Arc<Edge>>,
    LoggedIn(who): LoggedIn,
    params: Params,
) -> Result<Answer<MeasureList>, Refused> {
    let malformed = |_| Refused::parameter("参数格式错误");
    let (room, by) = (Some(room(&params)?), Some(who.user));
    let user = params.parsed("userId").map_err(malformed)?;
    let after = params.parsed("after").map_err(malformed)?;
    let (app, limit) = (edge.app, LIST_MAX);
    let found = edge.living(&ListMeasures { app, room, user, by, after, limit }).await?;
    Ok(Answer(found.into()))
}

async fn take(
    edge: &Edge,
    anchor: UserId,
    measure: Measure,
    params: &Params,
) -> Result<Done, Refused> {
    let malformed = |_| Refused::parameter("参数格式错误");
    let (room, user) = (Some(room(params)?), user(params)?);
    let seconds = params.parsed("seconds").map_err(malformed)?;
    let until = params.parsed("until").map_err(malformed)?;
    let until_ms = ends(seconds, until).map_err(|_| Refused::parameter("参数格式错误"))?;
    let reason = params.text("reason").unwrap_or_default().to_owned();
    let (app, by) = (edge.app, Some(anchor));
    edge.living(&Moderate { app, room, user, measure, until_ms, reason, by }).await?;
    Ok(Done)
}

fn room(params: &Params) -> Result<RoomId, Refused> {
    match super::anchor_config::room(params)? {
        Asked::Id(room) => Ok(room),
        Asked::Nothing => Err(Refused::new(404, "直播间不存在")),
    }
}

fn user(params: &Params) -> Result<UserId, Refused> {
    let missing = || Refused::parameter("需要给定用户id");
    params.parsed("userId").map_err(|_| missing())?.ok_or_else(missing)
}
