//! The encoding of every stored and sent value: MessagePack with named fields.
//!
//! Fields are named because an old event must still decode after an `Option`
//! field was appended to its type. The positional form does not allow that
//! (tried with rmp-serde 1.3). `nats/fixtures/` holds a sample of every shape
//! that was ever shipped.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// A value that could not be encoded.
#[derive(Debug, thiserror::Error)]
#[error("encode {type_name}")]
pub struct EncodeError {
    type_name: &'static str,
    source: rmp_serde::encode::Error,
}

/// Bytes that are not an encoded value of the wanted type.
#[derive(Debug, thiserror::Error)]
#[error("decode {type_name}")]
pub struct DecodeError {
    type_name: &'static str,
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
        .map_err(|source| EncodeError { type_name: std::any::type_name::<T>(), source })
}

/// Decodes one `T` from `bytes`.
///
/// # Errors
///
/// Fails when the bytes are of another shape; the same bytes never decode later.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    rmp_serde::from_slice(bytes)
        .map_err(|source| DecodeError { type_name: std::any::type_name::<T>(), source })
}
