//! The public keys of a login system, from a JWKS file.

use std::path::Path;

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse},
};
use tracing::warn;

/// The JWKS file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    #[error("read the JWKS file {path}")]
    Read { path: String, source: std::io::Error },
    #[error("parse the JWKS file {path}")]
    Parse { path: String, source: serde_json::Error },
    #[error("the JWKS file {path} holds no key for RS256 or ES256")]
    NoUsableKey { path: String },
}

/// A key and the one algorithm it is for. The algorithm in a token only chooses among keys, and
/// never changes the use of a key.
pub(crate) struct VerifyKey {
    pub(crate) id: Option<String>,
    pub(crate) algorithm: Algorithm,
    pub(crate) key: DecodingKey,
}

/// Reads the usable keys of a JWKS file.
pub(crate) fn read_jwks(path: &Path) -> Result<Vec<VerifyKey>, JwksError> {
    let shown = || path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|source| JwksError::Read { path: shown(), source })?;
    let set: JwkSet =
        serde_json::from_str(&text).map_err(|source| JwksError::Parse { path: shown(), source })?;
    let keys: Vec<_> = set.keys.iter().filter_map(usable).collect();
    if keys.is_empty() { Err(JwksError::NoUsableKey { path: shown() }) } else { Ok(keys) }
}

/// Binds a key to the algorithm that its type implies. A symmetric key is not accepted, because the
/// file is meant to be public.
fn usable(jwk: &Jwk) -> Option<VerifyKey> {
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
        Ok(key) => Some(VerifyKey { id: jwk.common.key_id.clone(), algorithm, key }),
        Err(_) => ignored(jwk),
    }
}

fn ignored(jwk: &Jwk) -> Option<VerifyKey> {
    warn!(kid = ?jwk.common.key_id, "key of the JWKS file is neither RS256 nor ES256, ignored");
    None
}
