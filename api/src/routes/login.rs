//! `/user/login`: a login as any user, without a password. For trials only.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use qiyu_nats::chain;
use qiyu_schema::UserId;
use rand::Rng;
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use crate::{
    context::ApiContext,
    identity::{COOKIE, Identity},
    params::Params,
    profile::{NAME_CHARS_MAX, Profile, is_avatar, shown_name},
    response::{ApiError, ResponseBody, Success},
    texts,
};

/// How long a login lasts.
const LOGIN_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// The ids of guests: far above ids typed by hand, and exact in JavaScript.
const GUESTS: std::ops::Range<u64> = 1_000_000_000_001..1 << 53;

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Who)]
pub(crate) struct LoginResponse {
    #[schema(value_type = u64)]
    user_id: UserId,
    nick_name: String,
    avatar: String,
}

/// The header with the value of the cookie, which the page can read, so that each of its tabs can
/// be another user. It discloses nothing: the caller of this route can be any user.
const TOKEN: HeaderName = HeaderName::from_static("x-qiyu-token");

/// Logs in as the user of the given id, or as a new guest.
#[utoipa::path(post, path = "/user/login", tag = "user", params(
    ("userId" = Option<u64>, Query, description = "Absent: a guest is made"),
    ("nickName" = Option<String>, Query, description = "Up to 35 characters"),
    ("avatar" = Option<String>, Query, description = "An http(s) URL or a path"),
    ("vip" = Option<bool>, Query, description = "May open rooms"),
), responses(
    (status = 200, description = "Sets the cookie qytk; code 403 unless dev_login is on", body = ResponseBody<LoginResponse>),
))]
pub(crate) async fn login(
    State(context): State<Arc<ApiContext>>,
    params: Params,
) -> Result<Response, ApiError> {
    if !context.dev_login {
        return Err(ApiError::new(403, texts::LOGIN_OFF));
    }
    let requested = read(&params)?;
    let (user, profile) = match requested.user {
        Some(user) => (user, context.stored_profile(user).await),
        None => new_guest(),
    };
    let profile = Profile {
        nick_name: requested.nick_name.unwrap_or(profile.nick_name),
        avatar: requested.avatar.unwrap_or(profile.avatar),
    };
    context.profiles.store(user, &profile).await.map_err(|error| {
        warn!(%user, error = %chain(&error), "profile of a login not stored");
        ApiError::system()
    })?;
    let identity = Identity {
        user,
        nick_name: Some(profile.nick_name.clone()),
        avatar: Some(profile.avatar.clone()).filter(|avatar| !avatar.is_empty()),
        vip: requested.vip,
    };
    let token = context.keys.sign(&identity, LOGIN_TTL).ok_or_else(ApiError::system)?;
    let cookie = format!(
        "{COOKIE}={}; Path=/; HttpOnly; SameSite=Lax; Max-Age={}",
        token.expose(),
        LOGIN_TTL.as_secs()
    );
    let text = |text: &str| HeaderValue::from_str(text).map_err(|_| ApiError::system());
    let headers = [(header::SET_COOKIE, text(&cookie)?), (TOKEN, text(token.expose())?)];
    let Profile { nick_name, avatar } = profile;
    Ok((headers, Success(LoginResponse { user_id: user, nick_name, avatar })).into_response())
}

/// The parameters of a login.
#[derive(Debug, PartialEq, Eq)]
struct LoginParams {
    user: Option<UserId>,
    nick_name: Option<String>,
    avatar: Option<String>,
    vip: bool,
}

fn read(params: &Params) -> Result<LoginParams, ApiError> {
    let user = params.parsed("userId").map_err(|_| ApiError::bad_parameter(texts::BAD_USER_ID))?;
    let nick_name = params.text("nickName");
    if nick_name.is_some_and(|name| name.chars().count() > NAME_CHARS_MAX) {
        return Err(ApiError::bad_parameter(texts::NAME_TOO_LONG));
    }
    let avatar = params.text("avatar");
    if avatar.is_some_and(|url| !is_avatar(url)) {
        return Err(ApiError::bad_parameter(texts::BAD_AVATAR));
    }
    let vip = params.parsed("vip").map_err(|_| ApiError::bad_parameter(texts::BAD_VIP))?;
    Ok(LoginParams {
        user,
        nick_name: nick_name.and_then(shown_name),
        avatar: avatar.map(str::to_owned),
        vip: vip.unwrap_or(false),
    })
}

fn new_guest() -> (UserId, Profile) {
    let mut rng = rand::rng();
    let id = rng.random_range(GUESTS);
    let nick_name = texts::guest_name(rng.random_range(0..10_000));
    let user = UserId::try_from(id).expect("every guest id is over the floor");
    (user, Profile { nick_name, avatar: String::new() })
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, extract::FromRequest, http::Request};

    use super::*;

    async fn requested(query: &str) -> Result<LoginParams, ApiError> {
        let request = Request::builder().uri(format!("/?{query}")).body(Body::empty()).unwrap();
        read(&Params::from_request(request, &()).await.unwrap())
    }

    #[tokio::test]
    async fn a_name_or_picture_that_cannot_be_shown_is_refused() {
        let url = format!("avatar=https://{}", "a".repeat(255));
        let name = format!("nickName={}", "n".repeat(36));
        for bad in ["userId=9999", "userId=x", &name, &url, "avatar=javascript:1", "vip=1"] {
            assert!(requested(bad).await.is_err(), "{bad}");
        }
        let full = requested("userId=10000&nickName=Ann&avatar=http://a/b&vip=true").await.unwrap();
        assert_eq!(
            full,
            LoginParams {
                user: Some("10000".parse().unwrap()),
                nick_name: Some("Ann".into()),
                avatar: Some("http://a/b".into()),
                vip: true
            }
        );
        let none = LoginParams { user: None, nick_name: None, avatar: None, vip: false };
        assert_eq!(requested("").await.unwrap(), none);
    }

    #[test]
    fn the_ids_of_guests_are_exact_in_javascript() {
        for _ in 0..1000 {
            let id = new_guest().0.get();
            assert!(1_000_000_000_000 < id && id < 1 << 53);
        }
    }
}
