//! Who a request comes from: a JWT any login system can mint, in the cookie
//! `qytk` or as a bearer token. No other header says anything about it.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse},
};
use qiyu_schema::{Secret, UserId};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use crate::{answer::Refused, edge::Edge, profile};

/// The cookie's name; the seed's.
pub(crate) const COOKIE: &str = "qytk";
/// How far the clocks of this machine and a login system may be apart.
const LEEWAY: Duration = Duration::from_secs(5);
/// A longer token was made to be expensive: ours are under 1 KiB.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// The keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is nothing to verify a login with.
    #[error("neither a JWT secret nor a JWKS file is set: nobody could log in")]
    None,
    /// Logins cannot be made without the secret they are signed with.
    #[error("dev_login needs a JWT secret to sign with")]
    NothingToSignWith,
    /// The file is not there.
    #[error("read the JWKS file {path}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a JWKS.
    #[error("parse the JWKS file {path}")]
    Parse {
        /// Which.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
    /// It has no RSA key and no P-256 key in it.
    #[error("the JWKS file {path} holds no key for RS256 or ES256")]
    Useless {
        /// Which.
        path: String,
    },
}

/// Somebody who is logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: UserId,
    /// As the token says, fit to be shown. `None`: it says nothing.
    pub(crate) nick_name: Option<String>,
    /// As the token says, fit to be shown. `None`: it says nothing.
    pub(crate) avatar: Option<String>,
    /// May open a room.
    pub(crate) vip: bool,
}

/// What a token holds. Anything else in it is the login system's own business.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    /// Whole or not; whether it is over is judged before we see it.
    exp: serde_json::Number,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nick: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    avatar: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vip: Option<bool>,
}

/// A key, and the one algorithm it is for. The token's own word for its
/// algorithm only chooses among keys; it never changes what a key is used for.
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// What tokens are verified and, for dev logins, signed with.
pub(crate) struct Keys {
    verify: Vec<Key>,
    sign: Option<EncodingKey>,
}

impl Keys {
    /// Reads the keys. The file is read once: a new key needs a restart.
    pub(crate) fn load(secret: Option<&Secret>, jwks: Option<&Path>) -> Result<Self, KeyError> {
        let mut verify = Vec::new();
        if let Some(secret) = secret {
            let key = DecodingKey::from_secret(secret.expose().as_bytes());
            verify.push(Key { id: None, algorithm: Algorithm::HS256, key });
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

    /// Writes a token that is valid for `ttl`. `None`: there is no key to sign with.
    pub(crate) fn sign(&self, who: &Identity, ttl: Duration) -> Option<Secret> {
        let claims = Claims {
            sub: who.user.to_string(),
            exp: (jsonwebtoken::get_current_timestamp() + ttl.as_secs()).into(),
            nick: who.nick_name.clone(),
            avatar: who.avatar.clone(),
            vip: who.vip.then_some(true),
        };
        let token = encode(&Header::new(Algorithm::HS256), &claims, self.sign.as_ref()?).ok()?;
        Some(Secret::new(token))
    }

    /// Who sent these headers. `None`: nobody that can be believed.
    pub(crate) fn identify(&self, headers: &HeaderMap) -> Option<Identity> {
        self.verify(bearer(headers).or_else(|| cookie(headers))?)
    }

    fn verify(&self, token: &str) -> Option<Identity> {
        if TOKEN_BYTES_MAX < token.len() {
            return None;
        }
        let header = decode_header(token).ok()?; // "none" is no algorithm it knows
        let fits = |key: &&Key| {
            let same_id = key.id.is_none() || header.kid.is_none() || key.id == header.kid;
            key.algorithm == header.alg && same_id
        };
        let claims = self.verify.iter().filter(fits).find_map(|key| {
            match decode::<Claims>(token, &key.key, &rules(key.algorithm)) {
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

fn rules(algorithm: Algorithm) -> Validation {
    let mut rules = Validation::new(algorithm); // requires exp
    rules.set_required_spec_claims(&["exp", "sub"]);
    rules.leeway = LEEWAY.as_secs();
    rules.validate_nbf = true;
    // Any login system may mint; whom it names beside us is its own affair.
    rules.validate_aud = false;
    rules
}

fn read_jwks(path: &Path) -> Result<Vec<Key>, KeyError> {
    let shown = || path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| KeyError::Read { path: shown(), source })?;
    let set: JwkSet =
        serde_json::from_str(&text).map_err(|source| KeyError::Parse { path: shown(), source })?;
    let keys: Vec<_> = set.keys.iter().filter_map(usable).collect();
    if keys.is_empty() { Err(KeyError::Useless { path: shown() }) } else { Ok(keys) }
}

/// A key of the set, bound to the algorithm its kind implies. Symmetric keys are
/// not taken from a file that is made to be public.
fn usable(jwk: &Jwk) -> Option<Key> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        _ => return ignored(jwk),
    };
    let named = match jwk.common.key_algorithm {
        None => algorithm,
        Some(KeyAlgorithm::RS256) => Algorithm::RS256,
        Some(KeyAlgorithm::ES256) => Algorithm::ES256,
        Some(_) => return ignored(jwk),
    };
    let signs = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
    if named != algorithm || !signs {
        return ignored(jwk);
    }
    match DecodingKey::from_jwk(jwk) {
        Ok(key) => Some(Key { id: jwk.common.key_id.clone(), algorithm, key }),
        Err(_) => ignored(jwk),
    }
}

fn ignored(jwk: &Jwk) -> Option<Key> {
    warn!(kid = ?jwk.common.key_id, "key of the JWKS file is neither RS256 nor ES256, ignored");
    None
}

/// The bearer token.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim())
}

/// The login cookie's value.
pub(crate) fn cookie(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then_some(value))
}

/// Who asks, if anybody is logged in.
#[derive(Debug)]
pub(crate) struct Caller(pub(crate) Option<Identity>);

impl FromRequestParts<Arc<Edge>> for Caller {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut Parts,
        edge: &Arc<Edge>,
    ) -> Result<Self, Self::Rejection> {
        Ok(Self(edge.keys.identify(&parts.headers)))
    }
}

/// Who asks; nobody gets past it anonymously.
#[derive(Debug)]
pub(crate) struct LoggedIn(pub(crate) Identity);

impl FromRequestParts<Arc<Edge>> for LoggedIn {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, edge: &Arc<Edge>) -> Result<Self, Refused> {
        let who = edge.keys.identify(&parts.headers).ok_or_else(Refused::anonymous)?;
        match edge.user_rates.admits(who.user, Instant::now()) {
            true => Ok(Self(who)),
            false => Err(Refused::too_fast()),
        }
    }
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
    fn only_what_is_signed_and_in_time_is_believed() {
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
        for (what, algorithm, secret, claims, believed) in table {
            let token = signed(algorithm, secret, &claims);
            assert_eq!(keys().verify(&token).is_some(), believed, "{what}");
        }
    }

    #[test]
    fn a_token_without_a_signature_is_nothing() {
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
    fn what_is_signed_reads_back() {
        let who = Identity {
            user: "18446744073709551615".parse().unwrap(),
            nick_name: Some("安".into()),
            avatar: Some("https://a/b.png".into()),
            vip: true,
        };
        let token = keys().sign(&who, Duration::from_secs(60)).unwrap();
        assert_eq!(keys().verify(token.expose()), Some(who));
    }

    #[test]
    fn a_token_cannot_bring_a_name_or_picture_that_is_not_fit() {
        let claims = json!({
            "sub": "10000", "exp": soon(60), "nick": "n".repeat(50), "avatar": "javascript:alert(1)"
        });
        let who = keys().verify(&signed(Algorithm::HS256, SECRET, &claims)).unwrap();
        assert_eq!(who.nick_name.unwrap().chars().count(), profile::NAME_CHARS_MAX);
        assert_eq!(who.avatar, None);
        assert!(!who.vip);
    }

    #[test]
    fn the_token_is_found_in_either_place_and_nowhere_else() {
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
    fn a_public_key_is_never_a_secret() {
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
        // An HS256 token signed with what the file shows to everybody.
        let forged = signed(Algorithm::HS256, SECRET, &json!({"sub": "10000", "exp": soon(60)}));
        assert_eq!(keys.verify(&forged), None);
        assert!(!keys.can_sign());
        assert!(matches!(Keys::load(None, None), Err(KeyError::None)));
    }
}
