//! The identity of a request's sender: a JWT of any login system, in the cookie `qytk` or as a
//! bearer token. No other header counts.

use std::{path::Path, time::Duration};

use axum::http::{HeaderMap, header};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
};
use qiyu_schema::{Secret, UserId};
use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::{
    jwks::{JwksError, VerifyKey, read_jwks},
    profile,
};

/// The name of the login cookie.
pub(crate) const COOKIE: &str = "qytk";
/// The tolerated difference between the clocks of this machine and a login system.
const LEEWAY: Duration = Duration::from_secs(5);
/// A longer token is meant to be expensive: usual ones are under 1 KiB.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// The keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("neither a JWT secret nor a JWKS file is set: nobody could log in")]
    None,
    #[error("dev_login needs a JWT secret to sign with")]
    NothingToSignWith,
    #[error(transparent)]
    Jwks(#[from] JwksError),
}

/// The identity of a logged-in user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: UserId,
    /// The name in the token, fit to be shown. `None`: the token has none.
    pub(crate) nick_name: Option<String>,
    /// The picture in the token, fit to be shown. `None`: the token has none.
    pub(crate) avatar: Option<String>,
    /// May open a room.
    pub(crate) vip: bool,
}

/// The claims of a token that are read. The login system may add others.
#[derive(Debug, Serialize, Deserialize)]
struct TokenClaims {
    sub: String,
    /// An integer or a fraction; the JWT library has checked it before.
    exp: serde_json::Number,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nick: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    avatar: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vip: Option<bool>,
}

/// The keys that verify tokens and, for dev logins, sign them.
pub(crate) struct Keys {
    verify: Vec<VerifyKey>,
    sign: Option<EncodingKey>,
}

impl Keys {
    /// Reads the keys. The file is read once: a new key needs a restart.
    pub(crate) fn load(secret: Option<&Secret>, jwks: Option<&Path>) -> Result<Self, KeyError> {
        let mut verify = Vec::new();
        if let Some(secret) = secret {
            let key = DecodingKey::from_secret(secret.expose().as_bytes());
            verify.push(VerifyKey { id: None, algorithm: Algorithm::HS256, key });
        }
        if let Some(path) = jwks {
            verify.extend(read_jwks(path)?);
        }
        if verify.is_empty() {
            return Err(KeyError::None);
        }
        let sign = secret.map(|secret| EncodingKey::from_secret(secret.expose().as_bytes()));
        Ok(Self { verify, sign })
    }

    pub(crate) fn can_sign(&self) -> bool {
        self.sign.is_some()
    }

    /// Signs a token that is valid for `ttl`. `None`: there is no key to sign with.
    pub(crate) fn sign(&self, identity: &Identity, ttl: Duration) -> Option<Secret> {
        let claims = TokenClaims {
            sub: identity.user.to_string(),
            exp: (jsonwebtoken::get_current_timestamp() + ttl.as_secs()).into(),
            nick: identity.nick_name.clone(),
            avatar: identity.avatar.clone(),
            vip: identity.vip.then_some(true),
        };
        let token = encode(&Header::new(Algorithm::HS256), &claims, self.sign.as_ref()?).ok()?;
        Some(Secret::new(token))
    }

    /// Returns the sender of a request with these headers. `None`: no valid token.
    pub(crate) fn identify(&self, headers: &HeaderMap) -> Option<Identity> {
        self.verify(bearer(headers).or_else(|| cookie(headers))?)
    }

    fn verify(&self, token: &str) -> Option<Identity> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let header = decode_header(token).ok()?; // fails for the algorithm "none"
        let fits = |key: &&VerifyKey| {
            let same_id = key.id.is_none() || header.kid.is_none() || key.id == header.kid;
            key.algorithm == header.alg && same_id
        };
        let claims = self.verify.iter().filter(fits).find_map(|key| {
            match decode::<TokenClaims>(token, &key.key, &validation(key.algorithm)) {
                Ok(token) => Some(token.claims),
                Err(error) => {
                    debug!(%error, "token refused");
                    None
                }
            }
        })?;
        Some(Identity {
            user: claims.sub.parse().ok()?,
            nick_name: claims.nick.as_deref().and_then(profile::shown_name),
            avatar: claims.avatar.filter(|url| !url.is_empty() && profile::is_avatar(url)),
            vip: claims.vip.unwrap_or(false),
        })
    }
}

fn validation(algorithm: Algorithm) -> Validation {
    let mut rules = Validation::new(algorithm); // requires exp
    rules.set_required_spec_claims(&["exp", "sub"]);
    rules.leeway = LEEWAY.as_secs();
    rules.validate_nbf = true;
    // Any login system may issue tokens, also for other audiences.
    rules.validate_aud = false;
    rules
}

/// Returns the bearer token.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim())
}

/// Returns the value of the login cookie.
pub(crate) fn cookie(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then_some(value))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &str = "of the test";

    fn keys() -> Keys {
        Keys::load(Some(&Secret::new(SECRET)), None).unwrap()
    }

    fn signed(algorithm: Algorithm, secret: &str, claims: &Value) -> String {
        let key = EncodingKey::from_secret(secret.as_bytes());
        encode(&Header::new(algorithm), claims, &key).unwrap()
    }

    fn soon(seconds: i64) -> i64 {
        i64::try_from(jsonwebtoken::get_current_timestamp()).unwrap() + seconds
    }

    #[test]
    fn only_a_token_with_a_valid_signature_and_time_is_accepted() {
        let sub = "285608972927369217";
        let good = json!({"sub": sub, "exp": soon(60)});
        let table = [
            ("plain", Algorithm::HS256, SECRET, good.clone(), true),
            ("just expired", Algorithm::HS256, SECRET, json!({"sub": sub, "exp": soon(-3)}), true),
            ("expired", Algorithm::HS256, SECRET, json!({"sub": sub, "exp": soon(-7)}), false),
            ("no exp", Algorithm::HS256, SECRET, json!({"sub": sub}), false),
            ("exp as text", Algorithm::HS256, SECRET, json!({"sub": sub, "exp": "9"}), false),
            ("no sub", Algorithm::HS256, SECRET, json!({"exp": soon(60)}), false),
            (
                "sub as number",
                Algorithm::HS256,
                SECRET,
                json!({"sub": 100_000, "exp": soon(60)}),
                false,
            ),
            (
                "sub too small",
                Algorithm::HS256,
                SECRET,
                json!({"sub": "9999", "exp": soon(60)}),
                false,
            ),
            ("sub a name", Algorithm::HS256, SECRET, json!({"sub": "ann", "exp": soon(60)}), false),
            (
                "not yet",
                Algorithm::HS256,
                SECRET,
                json!({"sub": sub, "exp": soon(60), "nbf": soon(30)}),
                false,
            ),
            (
                "for others too",
                Algorithm::HS256,
                SECRET,
                json!({"sub": sub, "exp": soon(60), "aud": "shop", "iss": "sso"}),
                true,
            ),
            ("another key", Algorithm::HS256, "guessed", good.clone(), false),
            ("another algorithm", Algorithm::HS512, SECRET, good, false),
        ];
        for (case, algorithm, secret, claims, accepted) in table {
            let token = signed(algorithm, secret, &claims);
            assert_eq!(keys().verify(&token).is_some(), accepted, "{case}");
        }
    }

    #[test]
    fn a_token_without_a_signature_is_refused() {
        // {"alg":"none"} and {"sub":"10000","exp":9999999999}, with every spelling of "none".
        let claims = "eyJzdWIiOiIxMDAwMCIsImV4cCI6OTk5OTk5OTk5OX0";
        for header in
            ["eyJhbGciOiJub25lIn0", "eyJhbGciOiJOb25lIn0", "eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIn0"]
        {
            for token in [format!("{header}.{claims}."), format!("{header}.{claims}")] {
                assert_eq!(keys().verify(&token), None, "{token}");
            }
        }
        for token in ["", ".", "..", "a.b.c", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
            assert_eq!(keys().verify(token), None, "{token}");
        }
    }

    #[test]
    fn a_signed_token_verifies_to_the_same_identity() {
        let identity = Identity {
            user: "18446744073709551615".parse().unwrap(),
            nick_name: Some("安".into()),
            avatar: Some("https://a/b.png".into()),
            vip: true,
        };
        let token = keys().sign(&identity, Duration::from_secs(60)).unwrap();
        assert_eq!(keys().verify(token.expose()), Some(identity));
    }

    #[test]
    fn an_unfit_name_or_picture_in_a_token_is_dropped() {
        let claims = json!({
            "sub": "10000", "exp": soon(60), "nick": "n".repeat(50), "avatar": "javascript:alert(1)"
        });
        let identity = keys().verify(&signed(Algorithm::HS256, SECRET, &claims)).unwrap();
        assert_eq!(identity.nick_name.unwrap().chars().count(), profile::NAME_CHARS_MAX);
        assert_eq!(identity.avatar, None);
        assert!(!identity.vip);
    }

    #[test]
    fn a_token_is_read_from_the_header_and_the_cookie_only() {
        let claims = json!({"sub": "10000", "exp": soon(60)});
        let token = signed(Algorithm::HS256, SECRET, &claims);
        let table = [
            ("authorization", format!("Bearer {token}"), true),
            ("authorization", format!("bearer {token}"), true),
            ("authorization", format!("Basic {token}"), false),
            ("cookie", format!("a=b; qytk={token}; c=d"), true),
            ("cookie", format!("xqytk={token}"), false),
            ("qiyu_gh_user_id", "10000".into(), false),
        ];
        for (name, value, found) in table {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_str(&value).unwrap());
            assert_eq!(keys().identify(&headers).is_some(), found, "{name}: {value}");
        }
    }

    #[test]
    fn a_public_key_is_never_used_as_a_secret() {
        // RFC 7515 A.3's P-256 key, a symmetric key and a key for encryption.
        let set = json!({"keys": [
            {"kty": "EC", "crv": "P-256", "kid": "e",
             "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
             "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
            {"kty": "oct", "kid": "o", "k": "b2YgdGhlIHRlc3Q"},
            {"kty": "EC", "crv": "P-256", "kid": "n", "use": "enc",
             "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
             "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}
        ]});
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), set.to_string()).unwrap();
        let keys = Keys::load(None, Some(file.path())).unwrap();
        let kinds: Vec<_> = keys.verify.iter().map(|key| (key.id.clone(), key.algorithm)).collect();
        assert_eq!(kinds, [(Some("e".into()), Algorithm::ES256)]);
        // An HS256 token signed with the secret of the public file.
        let forged = signed(Algorithm::HS256, SECRET, &json!({"sub": "10000", "exp": soon(60)}));
        assert_eq!(keys.verify(&forged), None);
        assert!(!keys.can_sign());
        assert!(matches!(Keys::load(None, None), Err(KeyError::None)));
    }
}
