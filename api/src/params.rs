//! A request's parameters, however they came: query, form fields or a JSON body.
//!
//! All three merged, the body over the query. Numbers stay text until somebody
//! asks for one, so an id of 64 bits never passes through a float.

use std::{collections::HashMap, str::FromStr};

use axum::{
    body::Bytes,
    extract::{Form, FromRequest, Query, Request},
    http::{HeaderMap, header},
};
use serde_json::value::RawValue;

use crate::answer::Refused;

/// The parameters of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Params(HashMap<String, String>);

/// A parameter that is there, but is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Params {
    /// As text. An empty one counts as absent: that is how forms say so.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|text| text.trim()).filter(|text| !text.is_empty())
    }

    /// As whatever reads from text. `Ok(None)`: absent.
    pub(crate) fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, Malformed> {
        self.text(name).map(|text| text.parse().map_err(|_| Malformed)).transpose()
    }

    /// As an id that may be one nobody has: a whole number that cannot be an id
    /// names nothing, but it is a number. `Ok(None)`: absent.
    pub(crate) fn asked<T: TryFrom<u64>>(&self, name: &str) -> Result<Option<Asked<T>>, Malformed> {
        let number = self.parsed::<i128>(name)?;
        Ok(number.map(|number| {
            let id = u64::try_from(number).ok().and_then(|number| T::try_from(number).ok());
            id.map_or(Asked::Nothing, Asked::Id)
        }))
    }
}

/// What an id in a request may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked<T> {
    /// Something that may exist.
    Id(T),
    /// A number no id has, like -1.
    Nothing,
}

impl<S: Send + Sync> FromRequest<S> for Params {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let unreadable = || Refused::parameter("参数格式错误");
        let query = Query::<Vec<(String, String)>>::try_from_uri(request.uri());
        let Query(query) = query.map_err(|_| unreadable())?;
        let mut params: HashMap<_, _> = query.into_iter().collect();
        let kind = content_type(request.headers());
        if kind.as_deref() == Some("application/x-www-form-urlencoded") {
            let form = Form::<Vec<(String, String)>>::from_request(request, state).await;
            let Form(form) = form.map_err(|_| unreadable())?;
            params.extend(form);
            return Ok(Self(params));
        }
        let json = matches!(kind.as_deref(), None | Some("application/json"));
        let body = Bytes::from_request(request, state).await.map_err(|_| unreadable())?;
        if body.trim_ascii().is_empty() {
            return Ok(Self(params));
        }
        // Any other kind of body is one a foreign page could send without asking.
        if !json {
            return Err(unreadable());
        }
        params.extend(json_fields(&body).map_err(|_| unreadable())?);
        Ok(Self(params))
    }
}

/// The media type, without its parameters.
fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let media = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    (!media.is_empty()).then_some(media)
}

/// The fields of a JSON object as text; null counts as absent. An array or an
/// object stays as it is written, which no number and no id reads from.
fn json_fields(body: &[u8]) -> Result<Vec<(String, String)>, serde_json::Error> {
    let fields: HashMap<String, Box<RawValue>> = serde_json::from_slice(body)?;
    let mut texts = Vec::with_capacity(fields.len());
    for (name, value) in fields {
        let raw = value.get();
        match raw.as_bytes().first() {
            Some(b'"') => texts.push((name, serde_json::from_str(raw)?)),
            Some(b'n') | None => {}
            Some(_) => texts.push((name, raw.to_owned())), // a number digit by digit
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use qiyu_schema::{RoomId, UserId};

    use super::*;

    async fn read(uri: &str, kind: Option<&str>, body: &str) -> Result<Params, Refused> {
        let mut request = Request::builder().method("POST").uri(uri);
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        Params::from_request(request.body(Body::from(body.to_owned())).unwrap(), &()).await
    }

    const JSON: Option<&str> = Some("application/json; charset=utf-8");
    const FORM: Option<&str> = Some("application/x-www-form-urlencoded");
    const BIG: &str = "285608972927369217";

    #[tokio::test]
    async fn every_way_of_sending_says_the_same() {
        let table = [
            (format!("/?userId={BIG}"), None, String::new()),
            ("/".into(), FORM, format!("userId={BIG}")),
            ("/".into(), JSON, format!(r#"{{"userId":{BIG}}}"#)),
            ("/".into(), JSON, format!(r#"{{"userId":"{BIG}"}}"#)),
            ("/".into(), None, format!(r#"{{"userId":{BIG}}}"#)),
            ("/?userId=10000".into(), FORM, format!("userId={BIG}")),
            ("/?userId=10000".into(), JSON, format!(r#"{{"userId":{BIG}}}"#)),
            (format!("/?userId={BIG}"), JSON, r#"{"userId":null,"more":[1]}"#.into()),
        ];
        for (uri, kind, body) in table {
            let params = read(&uri, kind, &body).await.unwrap();
            let user: Option<UserId> = params.parsed("userId").unwrap();
            assert_eq!(user.unwrap().to_string(), BIG, "{uri} {kind:?} {body}");
        }
    }

    #[tokio::test]
    async fn what_is_no_number_is_not_made_one() {
        for body in [
            r#"{"userId":1e5}"#,
            r#"{"userId":12345.0}"#,
            r#"{"userId":"0x2711"}"#,
            r#"{"userId":" 1 2 "}"#,
            r#"{"userId":true}"#,
            r#"{"userId":[1]}"#,
            r#"{"userId":{}}"#,
            r#"{"userId":-10000}"#,
            r#"{"userId":18446744073709551616}"#,
        ] {
            let params = read("/", JSON, body).await.unwrap();
            assert_eq!(params.parsed::<UserId>("userId"), Err(Malformed), "{body}");
        }
    }

    #[tokio::test]
    async fn a_room_may_be_asked_for_that_cannot_be() {
        let asked = async |query: &str| {
            let params = read(&format!("/?roomId={query}"), None, "").await.unwrap();
            params.asked::<RoomId>("roomId")
        };
        assert_eq!(asked("7").await, Ok(Some(Asked::Id("7".parse().unwrap()))));
        assert_eq!(asked("-1").await, Ok(Some(Asked::Nothing)));
        assert_eq!(asked("0").await, Ok(Some(Asked::Nothing)));
        assert_eq!(asked("").await, Ok(None));
        assert_eq!(asked("x").await, Err(Malformed));
    }

    #[tokio::test]
    async fn text_is_decoded_and_trimmed() {
        let params = read("/", FORM, "nickName=%E5%AE%89+A%26b&avatar=+").await.unwrap();
        assert_eq!(params.text("nickName"), Some("安 A&b"));
        assert_eq!(params.text("avatar"), None);
        assert_eq!(params.text("vip"), None);
    }

    #[tokio::test]
    async fn bodies_that_cannot_be_read_are_refused() {
        for (kind, body) in [
            (JSON, "{"),
            (JSON, "[1]"),
            (JSON, r#"{"a":1}{"b":2}"#),
            (Some("text/plain"), r#"{"a":1}"#),
            (Some("multipart/form-data; boundary=x"), "--x--"),
            (None, "a=1"),
        ] {
            let refused = read("/", kind, body).await.unwrap_err();
            assert_eq!(refused, Refused::parameter("参数格式错误"), "{kind:?} {body}");
        }
    }
}
