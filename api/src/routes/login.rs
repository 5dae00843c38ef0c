//! `/user/login`: anybody is whoever they say. For trying things out only.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use qiyu_schema::UserId;
use rand::Rng;
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use crate::{
    answer::{Answer, Body, Refused},
    edge::Edge,
    identity::{COOKIE, Identity},
    params::Params,
    profile::{NAME_CHARS_MAX, Profile, is_avatar, shown_name},
};

/// How long a login lasts; the seed's cookie did as long.
const LOGIN_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// Guests' ids: far above anything typed by hand, and exact in JavaScript.
const GUESTS: std::ops::Range<u64> = 1_000_000_000_001..1 << 53;

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Who {
    #[schema(value_type = u64)]
    user_id: UserId,
    nick_name: String,
    avatar: String,
}

/// The cookie's content once more, where the page can read it, so that each of
/// its tabs can be somebody else. It gives nothing away: whoever gets here can
/// be anybody.
const TOKEN: HeaderName = HeaderName::from_static("x-qiyu-token");

/// Logs in as the user of the given id, or as a new guest.
#[utoipa::path(post, path = "/user/login", tag = "user", params(
    ("userId" = Option<u64>, Query, description = "Absent: a guest is made"),
    ("nickName" = Option<String>, Query, description = "Up to 35 characters"),
    ("avatar" = Option<String>, Query, description = "An http(s) URL or a path"),
    ("vip" = Option<bool>, Query, description = "May open rooms"),
), responses(
    (status = 200, description = "Sets the cookie qytk; code 403 unless dev_login is on", body = Body<Who>),
))]
pub(crate) async fn login(
    State(edge): State<Arc<Edge>>,
    params: Params,
) -> Result<Response, Refused> {
    if !edge.dev_login {
        return Err(Refused::new(403, "未开放登录"));
    }
    let asked = read(&params)?;
    let (user, profile) = match asked.user {
        Some(user) => {
            let known = edge.known(&[user]).await.pop();
            (user, known.unwrap_or_else(|| Profile::unknown(user)))
        }
        None => guest(),
    };
    let profile = Profile {
        nick_name: asked.nick_name.unwrap_or(profile.nick_name),
        avatar: asked.avatar.unwrap_or(profile.avatar),
    };
    edge.profiles.keep(user, &profile).await.map_err(|error| {
        warn!(%user, error = &error as &dyn std::error::Error, "login not kept");
        Refused::system()
    })?;
    let who = Identity {
        user,
        nick_name: Some(profile.nick_name.clone()),
        avatar: Some(profile.avatar.clone()).filter(|avatar| !avatar.is_empty()),
        vip: asked.vip,
    };
    let token = edge.keys.sign(&who, LOGIN_TTL).ok_or_else(Refused::system)?;
    let cookie = format!(
        "{COOKIE}={}; Path=/; HttpOnly; SameSite=Lax; Max-Age={}",
        token.expose(),
        LOGIN_TTL.as_secs()
    );
    let text = |text: &str| HeaderValue::from_str(text).map_err(|_| Refused::system());
    let headers = [(header::SET_COOKIE, text(&cookie)?), (TOKEN, text(token.expose())?)];
    let Profile { nick_name, avatar } = profile;
    Ok((headers, Answer(Who { user_id: user, nick_name, avatar })).into_response())
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    user: Option<UserId>,
    nick_name: Option<String>,
    avatar: Option<String>,
    vip: bool,
}

fn read(params: &Params) -> Result<Asked, Refused> {
    let user = params.parsed("userId").map_err(|_| Refused::parameter("用户id不正确"))?;
    let nick_name = params.text("nickName");
    if nick_name.is_some_and(|name| NAME_CHARS_MAX < name.chars().count()) {
        return Err(Refused::parameter("昵称过长"));
    }
    let avatar = params.text("avatar");
    if avatar.is_some_and(|url| !is_avatar(url)) {
        return Err(Refused::parameter("头像地址不正确"));
    }
    let vip = params.parsed("vip").map_err(|_| Refused::parameter("vip只能是true或false"))?;
    Ok(Asked {
        user,
        nick_name: nick_name.and_then(shown_name),
        avatar: avatar.map(str::to_owned),
        vip: vip.unwrap_or(false),
    })
}

fn guest() -> (UserId, Profile) {
    let mut rng = rand::rng();
    let id = rng.random_range(GUESTS);
    let nick_name = format!("游客-{:04}", rng.random_range(0..10_000));
    let user = UserId::try_from(id).expect("every guest id is over the floor");
    (user, Profile { nick_name, avatar: String::new() })
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, extract::FromRequest, http::Request};

    use super::*;

    async fn asked(query: &str) -> Result<Asked, Refused> {
        let request = Request::builder().uri(format!("/?{query}")).body(Body::empty()).unwrap();
        read(&Params::from_request(request, &()).await.unwrap())
    }

    #[tokio::test]
    async fn only_what_can_be_shown_is_taken() {
        let url = format!("avatar=https://{}", "a".repeat(255));
        let name = format!("nickName={}", "n".repeat(36));
        for bad in ["userId=9999", "userId=x", &name, &url, "avatar=javascript:1", "vip=1"] {
            assert!(asked(bad).await.is_err(), "{bad}");
        }
        let full = asked("userId=10000&nickName=Ann&avatar=http://a/b&vip=true").await.unwrap();
        assert_eq!(
            full,
            Asked {
                user: Some("10000".parse().unwrap()),
                nick_name: Some("Ann".into()),
                avatar: Some("http://a/b".into()),
                vip: true
            }
        );
        let none = Asked { user: None, nick_name: None, avatar: None, vip: false };
        assert_eq!(asked("").await.unwrap(), none);
    }

    #[test]
    fn guests_are_exact_in_javascript() {
        for _ in 0..1000 {
            let id = guest().0.get();
            assert!(1_000_000_000_000 < id && id < 1 << 53);
        }
    }
}
