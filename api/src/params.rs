//! The parameters of a request, from the query, from form fields or from a JSON body.
//!
//! All are merged, and the body wins. Numbers stay text until they are read, so an id of 64 bits
//! never passes through a float.

use std::{collections::HashMap, str::FromStr};

use axum::{
    body::Bytes,
    extract::{Form, FromRequest, Query, Request},
    http::{HeaderMap, header},
};
use serde_json::value::RawValue;

use crate::{response::ApiError, texts};

/// The parameters of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Params(HashMap<String, String>);

/// A parameter is present and cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Params {
    /// Reads a text. An empty text counts as absent, because forms send absent values so.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|text| text.trim()).filter(|text| !text.is_empty())
    }

    /// Reads a value of any type that parses from text. `Ok(None)`: absent.
    pub(crate) fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, Malformed> {
        self.text(name).map(|text| text.parse().map_err(|_| Malformed)).transpose()
    }

    /// Reads an id that may be outside the range of ids: such a number is well-formed, and no object
    /// has it. `Ok(None)`: absent.
    pub(crate) fn id<T: TryFrom<u64>>(
        &self,
        name: &str,
    ) -> Result<Option<RequestedId<T>>, Malformed> {
        let number = self.parsed::<i128>(name)?;
        Ok(number.map(|number| {
            let id = u64::try_from(number).ok().and_then(|number| T::try_from(number).ok());
            id.map_or(RequestedId::Impossible, RequestedId::Valid)
        }))
    }
}

/// An id in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestedId<T> {
    Valid(T),
    /// A number outside the range of ids, like -1.
    Impossible,
}

impl<S: Send + Sync> FromRequest<S> for Params {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let unreadable = || ApiError::bad_parameter(texts::MALFORMED);
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
        // A page of another site could send any other type of body without a preflight request.
        if !json {
            return Err(unreadable());
        }
        params.extend(json_fields(&body).map_err(|_| unreadable())?);
        Ok(Self(params))
    }
}

/// Returns the media type without its parameters.
fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let media = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    (!media.is_empty()).then_some(media)
}

/// Returns the fields of a JSON object as text; null counts as absent. An array or an object keeps
/// its JSON text, which does not parse as a number or an id.
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

    async fn read(uri: &str, kind: Option<&str>, body: &str) -> Result<Params, ApiError> {
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
    async fn a_parameter_is_read_alike_from_every_place() {
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
    async fn only_digits_are_read_as_a_number() {
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
    async fn an_impossible_room_id_is_well_formed() {
        let read_id = async |query: &str| {
            let params = read(&format!("/?roomId={query}"), None, "").await.unwrap();
            params.id::<RoomId>("roomId")
        };
        assert_eq!(read_id("7").await, Ok(Some(RequestedId::Valid("7".parse().unwrap()))));
        assert_eq!(read_id("-1").await, Ok(Some(RequestedId::Impossible)));
        assert_eq!(read_id("0").await, Ok(Some(RequestedId::Impossible)));
        assert_eq!(read_id("").await, Ok(None));
        assert_eq!(read_id("x").await, Err(Malformed));
    }

    #[tokio::test]
    async fn text_is_decoded_and_trimmed() {
        let params = read("/", FORM, "nickName=%E5%AE%89+A%26b&avatar=+").await.unwrap();
        assert_eq!(params.text("nickName"), Some("安 A&b"));
        assert_eq!(params.text("avatar"), None);
        assert_eq!(params.text("vip"), None);
    }

    #[tokio::test]
    async fn a_body_that_cannot_be_read_is_refused() {
        for (kind, body) in [
            (JSON, "{"),
            (JSON, "[1]"),
            (JSON, r#"{"a":1}{"b":2}"#),
            (Some("text/plain"), r#"{"a":1}"#),
            (Some("multipart/form-data; boundary=x"), "--x--"),
            (None, "a=1"),
        ] {
            let refused = read("/", kind, body).await.unwrap_err();
            assert_eq!(refused, ApiError::bad_parameter("参数格式错误"), "{kind:?} {body}");
        }
    }
}
