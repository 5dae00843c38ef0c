//! MessagePack with named fields: what every stream and bucket holds.
//!
//! Named, because an old event must still decode after an `Option` field was
//! appended to its type; the positional form does not (tried with rmp-serde
//! 1.3). A sample of every shape ever shipped lies in `nats/fixtures/`.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// A value that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("encode {what}")]
pub struct EncodeError {
    what: &'static str,
    source: rmp_serde::encode::Error,
}

/// Bytes that are not the value they should be.
#[derive(Debug, thiserror::Error)]
#[error("decode {what}")]
pub struct DecodeError {
    what: &'static str,
    source: rmp_serde::decode::Error,
}

/// Encodes `value`.
///
/// # Errors
///
/// None in practice for the types of this crate: their fields are plain data.
pub fn encode<T: Serialize>(value: &T) -> Result<Bytes, EncodeError> {
    rmp_serde::to_vec_named(value)
        .map(Bytes::from)
        .map_err(|source| EncodeError { what: std::any::type_name::<T>(), source })
}

/// Decodes one `T` from `bytes`.
///
/// # Errors
///
/// When the bytes are of another shape; the same bytes will never decode.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    rmp_serde::from_slice(bytes)
        .map_err(|source| DecodeError { what: std::any::type_name::<T>(), source })
}
