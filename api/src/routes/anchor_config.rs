//! `/living/anchorConfig`: a room as its page shows it to the caller.

use std::sync::Arc;

use axum::extract::State;
use qiyu_schema::{UserId, command::FindRoom};
use serde::Serialize;
use utoipa::ToSchema;

use super::parameters::room_id;
use crate::{
    caller::LoggedIn,
    context::ApiContext,
    params::{Params, RequestedId},
    profile::{AVATAR_DEFAULT, BACKGROUND_DEFAULT, Profile},
    response::{ApiError, ResponseBody, Success},
};

/// Every field is there in every answer. A room that is unknown or closed has
/// the id -1 and the anchor 0.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AnchorConfig {
    #[schema(value_type = i64)]
    room_id: i128, // ids are unsigned, and -1 is none of them
    room_name: String,
    anchor_id: u64,
    anchor_nick_name: String,
    anchor_img: String,
    /// The anchor's, under the seed's name for it.
    avatar: String,
    /// The seed's `isAnchor`, as its serialiser wrote it, and as one would expect it.
    anchor: bool,
    is_anchor: bool,
    #[schema(value_type = u64)]
    user_id: UserId,
    /// The caller's, under both of the seed's names for it.
    nick_name: String,
    watcher_nick_name: String,
    watcher_avatar: String,
    default_bg_img: &'static str,
    /// The opponent in a pk; there is none yet.
    #[schema(value_type = Option<u64>)]
    pk_obj_id: Option<UserId>,
    watch_num: u64,
}

/// Returns a room to a logged-in user.
#[utoipa::path(post, path = "/living/anchorConfig", summary = "Answers whoever is logged in.", tag = "living", security(("login" = [])), params(
    ("roomId" = u64, Query, description = "The room"),
), responses(
    (status = 200, description = "The room as the caller sees it; roomId -1 when it is unknown or closed", body = ResponseBody<AnchorConfig>),
))]
pub(crate) async fn anchor_config(
    State(context): State<Arc<ApiContext>>,
    LoggedIn(identity): LoggedIn,
    params: Params,
) -> Result<Success<AnchorConfig>, ApiError> {
    let found = match room_id(&params)? {
        RequestedId::Valid(room) => {
            context.command_living(&FindRoom { app: context.app, room }).await?
        }
        RequestedId::Impossible => None,
    };
    let watcher = context.profile(&identity).await;
    let mut config = without_room(identity.user, watcher);
    if let Some(room) = found {
        let anchor = context.stored_profile(room.anchor).await;
        config.room_id = room.room.get().into();
        config.room_name = room.name;
        config.anchor_id = room.anchor.get();
        config.avatar = anchor.avatar_or_default().to_owned();
        config.anchor_img = if room.cover.is_empty() { config.avatar.clone() } else { room.cover };
        config.anchor_nick_name = anchor.nick_name;
        config.anchor = room.anchor == identity.user;
        config.is_anchor = config.anchor;
        config.watch_num = room.watch_num;
    }
    Ok(Success(config))
}

/// Returns the response for a room that is unknown or closed.
fn without_room(user_id: UserId, watcher: Profile) -> AnchorConfig {
    AnchorConfig {
        room_id: -1,
        room_name: String::new(),
        anchor_id: 0,
        anchor_nick_name: String::new(),
        anchor_img: AVATAR_DEFAULT.into(),
        avatar: AVATAR_DEFAULT.into(),
        anchor: false,
        is_anchor: false,
        user_id,
        nick_name: watcher.nick_name.clone(),
        watcher_avatar: watcher.avatar_or_default().to_owned(),
        watcher_nick_name: watcher.nick_name,
        default_bg_img: BACKGROUND_DEFAULT,
        pk_obj_id: None,
        watch_num: 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_response_without_a_room_has_every_field() {
        let user: UserId = "285608972927369217".parse().unwrap();
        let text = serde_json::to_string(&without_room(user, Profile::default_for(user))).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        for name in [
            "anchorId",
            "userId",
            "anchorImg",
            "roomName",
            "anchor",
            "isAnchor",
            "avatar",
            "roomId",
            "watcherNickName",
            "anchorNickName",
            "watcherAvatar",
            "defaultBgImg",
            "pkObjId",
            "nickName",
            "watchNum",
        ] {
            assert!(config.get(name).is_some(), "{name}");
        }
        assert_eq!(config["roomId"], json!(-1));
        assert!(text.contains(r#""userId":285608972927369217"#));
    }
}
