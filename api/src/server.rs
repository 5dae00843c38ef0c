//! The calls of integrators: JSON in, JSON out, real status codes, a key at the
//! door. The same calls answer over NATS as `qiyu.server.<verb>`, where the
//! bus's own permissions say who may make them.

mod measures;
mod members;
mod online;
mod send;
mod token;

pub(crate) use measures::{MeasureList, ends};

use std::{fmt, future::Future, str::FromStr, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request},
    http::{HeaderMap, HeaderName, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use qiyu_nats::service::{Answering, CommandError, Refusal};
use qiyu_schema::{
    Secret, UserId,
    command::{Command, LIVING},
};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use subtle::ConstantTimeEq;
use tracing::warn;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    answer::{Code, Refused},
    edge::Edge,
    identity::bearer,
};

/// The longest body: a batch of a hundred messages, none of them of the largest.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// What their paths begin with.
pub(crate) const PREFIX: &str = "/server/";
/// The group under which the calls answer over NATS.
const GROUP: &str = "qiyu.server";

/// The routes, with their description.
pub(crate) fn router() -> OpenApiRouter<Arc<Edge>> {
    OpenApiRouter::new()
        .routes(routes!(send::send))
        .routes(routes!(send::send_batch))
        .routes(routes!(token::token))
        .routes(routes!(online::online))
        .routes(routes!(members::members))
        .routes(routes!(measures::kick))
        .routes(routes!(measures::mute))
        .routes(routes!(measures::unmute))
        .routes(routes!(measures::ban))
        .routes(routes!(measures::unban))
        .routes(routes!(measures::measures))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// Answers the same calls over NATS.
///
/// # Errors
///
/// When the connection is closed.
pub(crate) async fn answer_calls(
    answering: &Answering,
    edge: &Arc<Edge>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    offer::<send::Send>(answering, edge, "send").await?;
    offer::<send::SendBatch>(answering, edge, "batchSend").await?;
    offer::<token::AskToken>(answering, edge, "token").await?;
    offer::<online::AskOnline>(answering, edge, "online").await?;
    offer::<members::AskMembersOf>(answering, edge, "members").await?;
    offer::<measures::Kick>(answering, edge, "kick").await?;
    offer::<measures::Mute>(answering, edge, "mute").await?;
    offer::<measures::Unmute>(answering, edge, "unmute").await?;
    offer::<measures::Ban>(answering, edge, "ban").await?;
    offer::<measures::Unban>(answering, edge, "unban").await?;
    offer::<measures::AskMeasures>(answering, edge, "measures").await
}

/// Something that can be asked, however it comes.
trait Call: DeserializeOwned + std::marker::Send + 'static {
    type Answer: Serialize + std::marker::Send;
    fn answer(
        self,
        edge: &Edge,
    ) -> impl Future<Output = Result<Self::Answer, Failed>> + std::marker::Send;
}

async fn offer<C: Call>(
    answering: &Answering,
    edge: &Arc<Edge>,
    verb: &'static str,
) -> Result<(), Box<dyn std::error::Error + std::marker::Send + Sync>> {
    let edge = Arc::clone(edge);
    let handler = move |payload: Bytes| {
        let edge = Arc::clone(&edge);
        async move {
            let answer = read::<C>(&payload)?.answer(&edge).await?;
            serde_json::to_vec(&answer).map(Bytes::from).map_err(|error| {
                warn!(verb, error = &error as &dyn std::error::Error, "answer not encoded");
                Failed::system().into()
            })
        }
    };
    answering.call(GROUP, verb, handler).await
}

/// Reads a body. An empty one says nothing, so only a call without fields is read from it.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failed> {
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    // serde's words are about what the caller sent, and quote nothing of ours.
    serde_json::from_slice(body).map_err(|error| Failed::asked(format!("body: {error}")))
}

/// A call made over HTTP by somebody who has the key.
struct Asked<C>(C);

impl<C: Call> FromRequest<Arc<Edge>> for Asked<C> {
    type Rejection = Failed;

    async fn from_request(request: Request, edge: &Arc<Edge>) -> Result<Self, Failed> {
        let (mut parts, body) = request.into_parts();
        Integrator::from_request_parts(&mut parts, edge).await?;
        let request = Request::from_parts(parts, body);
        let body = Bytes::from_request(request, edge).await.map_err(|_| {
            Failed::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 1 MiB")
        })?;
        Ok(Self(read(&body)?))
    }
}

impl<C: Call> Asked<C> {
    async fn answered(self, edge: &Edge) -> Result<Json<C::Answer>, Failed> {
        self.0.answer(edge).await.map(Json)
    }
}

/// Whoever has the key.
struct Integrator;

impl FromRequestParts<Arc<Edge>> for Integrator {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, edge: &Arc<Edge>) -> Result<Self, Failed> {
        match &edge.api_key {
            None => Err(Failed::new(StatusCode::NOT_FOUND, "no API key is set here")),
            Some(_) if has_key(&parts.headers, edge.api_key.as_ref()) => Ok(Self),
            Some(_) => {
                Err(Failed::new(StatusCode::UNAUTHORIZED, "the API key is wrong or missing"))
            }
        }
    }
}

/// Whether a request brings the key. Takes as long for a wrong one as for the right one.
pub(crate) fn has_key(headers: &HeaderMap, key: Option<&Secret>) -> bool {
    let (Some(key), Some(given)) = (key, bearer(headers)) else { return false };
    key.expose().as_bytes().ct_eq(given.as_bytes()).into()
}

/// Why a call was not answered: `{"code":404,"msg":"…"}` under the same status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    status: StatusCode,
    msg: String,
}

/// What a refused call is answered with.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Failure {
    /// The status once more.
    code: u16,
    /// For people.
    msg: String,
}

impl Failed {
    fn new(status: StatusCode, msg: impl Into<String>) -> Self {
        Self { status, msg: msg.into() }
    }

    /// The caller's fault.
    fn asked(msg: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, msg)
    }

    /// Our fault. What went wrong is in the log and nowhere else.
    fn system() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "系统异常")
    }

    fn failure(&self) -> Failure {
        Failure { code: self.status.as_u16(), msg: self.msg.clone() }
    }
}

impl From<Failed> for Refusal {
    fn from(failed: Failed) -> Self {
        Self { code: failed.status.as_u16(), message: failed.msg }
    }
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        let status = StatusCode::from_u16(refused.code()).unwrap_or(StatusCode::BAD_GATEWAY);
        // 501 is the contract's business error, not HTTP's "not implemented".
        let status = if status == StatusCode::NOT_IMPLEMENTED {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            status
        };
        Self::new(status, refused.msg())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        const NONE: HeaderName = HeaderName::from_static("x-content-type-options");
        let hint = match self.status {
            StatusCode::UNAUTHORIZED => (header::WWW_AUTHENTICATE, "Bearer"),
            StatusCode::TOO_MANY_REQUESTS => (header::RETRY_AFTER, "1"),
            _ => (NONE, "nosniff"), // every answer has it anyway
        };
        let mut response = (self.status, [hint], Json(self.failure())).into_response();
        response.extensions_mut().insert(Code(self.status.as_u16()));
        response
    }
}

/// Asks the rooms, and says their refusals with a status.
async fn living<C: Command>(edge: &Edge, command: &C) -> Result<C::Reply, Failed> {
    match edge.bus.ask(LIVING, command).await {
        Ok(reply) => Ok(reply),
        Err(CommandError::Refused(Refusal { code, message })) => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Err(Failed::new(status, message))
        }
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "rooms do not answer");
            Err(Failed::system())
        }
    }
}

/// A number, or a string of its digits: JavaScript cannot write every id as a number.
fn id<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(from: D) -> Result<T, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "an id: a number or a string of digits")]
    enum Id {
        Number(u64),
        Digits(String),
    }
    let text = match Id::deserialize(from)? {
        Id::Number(number) => number.to_string(),
        Id::Digits(digits) => digits,
    };
    text.parse().map_err(serde::de::Error::custom)
}

/// As [`id`]; null means absent.
fn maybe_id<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    struct Given<T>(T);
    impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Given<T> {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            id(from).map(Self)
        }
    }
    Ok(Option::<Given<T>>::deserialize(from)?.map(|given| given.0))
}

/// As [`id`], several.
fn ids<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<UserId>, D::Error> {
    #[derive(Deserialize)]
    struct One(#[serde(deserialize_with = "id")] UserId);
    Ok(Vec::<One>::deserialize(from)?.into_iter().map(|one| one.0).collect())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_the_key_opens() {
        let key = Secret::new("a-key-0123456789");
        let bears = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            has_key(&headers, Some(&key))
        };
        assert!(bears("Bearer a-key-0123456789") && bears("bearer a-key-0123456789"));
        for wrong in [
            "Bearer a-key-012345678",
            "Bearer ",
            "Basic a-key-0123456789",
            "Bearer a-key-01234567890",
        ] {
            assert!(!bears(wrong), "{wrong}");
        }
        assert!(!has_key(&HeaderMap::new(), Some(&key)) && !has_key(&HeaderMap::new(), None));
    }

    #[test]
    fn ids_are_numbers_or_digits_and_exact() {
        #[derive(Deserialize)]
        struct Ids {
            #[serde(deserialize_with = "id")]
            user: UserId,
            #[serde(default, deserialize_with = "maybe_id")]
            other: Option<UserId>,
        }
        let read = |text: &str| {
            serde_json::from_str::<Ids>(text).ok().map(|ids| (ids.user.get(), ids.other))
        };
        let big = 285_608_972_927_369_217;
        assert_eq!(read(r#"{"user":285608972927369217}"#), Some((big, None)));
        assert_eq!(read(r#"{"user":"285608972927369217","other":null}"#), Some((big, None)));
        for bad in [
            r#"{"user":9999}"#,
            r#"{"user":1e5}"#,
            r#"{"user":"x"}"#,
            r#"{"user":10000,"other":[]}"#,
            "{}",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
