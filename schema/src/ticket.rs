//! The ticket of an IM connection: signed, and valid for one connection. On the
//! wire it is called `token`.
//!
//! A ticket carries the identity of its holder, so a gateway can admit a login
//! without another service. The bucket `tickets` makes sure it is used once.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use hmac::{Hmac, Mac};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::{
    codec,
    id::{AppId, UserId},
    secret::Secret,
};

/// The content of a ticket: the identity of its holder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ticket {
    #[serde(rename = "a")]
    pub app: AppId,
    #[serde(rename = "u")]
    pub user: UserId,
    /// Displayed as the sender of messages.
    #[serde(rename = "n")]
    pub nick_name: String,
    /// URL of a picture; may be empty.
    #[serde(rename = "i")]
    pub avatar: String,
    /// End of its validity, ms since 1970.
    #[serde(rename = "x")]
    pub expires_ms: u64,
    /// Different in every ticket.
    #[serde(rename = "r")]
    pub nonce: u128,
}

/// The reason a token is not a valid ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It has another form, or was signed with another key.
    #[error("not a ticket of this system")]
    Forged,
    /// Its validity has ended.
    #[error("the ticket has expired")]
    Expired,
}

/// Longest token this system issues; the lengths of nick name and avatar are limited.
pub const TOKEN_BYTES_MAX: usize = 2048;

/// The key that signs tickets. Gateways and api derive it from the same secret.
#[derive(Clone)]
pub struct TicketKey(Hmac<Sha256>);

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKey(***)")
    }
}

impl TicketKey {
    /// Derives the key from `secret`. A ticket cannot be mistaken for a JWT that
    /// was signed with the same secret.
    pub fn derive(secret: &Secret) -> Self {
        let mut mac = keyed(secret.expose().as_bytes());
        mac.update(b"qiyu ticket v1");
        Self(keyed(&mac.finalize().into_bytes()))
    }

    /// Signs a ticket and returns it as a token of `A-Za-z0-9._-`.
    ///
    /// # Errors
    ///
    /// None in practice: a ticket is plain data.
    pub fn sign(&self, ticket: &Ticket) -> Result<Secret, codec::EncodeError> {
        let body = BASE64.encode(codec::encode(ticket)?);
        let signature = BASE64.encode(self.signature(&body).finalize().into_bytes());
        Ok(Secret::new(format!("{body}.{signature}")))
    }

    /// Returns the ticket of a token that was signed with this key and is valid at `now_ms`.
    ///
    /// # Errors
    ///
    /// - [`TicketError::Forged`]: the token was not signed with this key.
    /// - [`TicketError::Expired`]: it was, and its validity has ended.
    pub fn verify(&self, token: &str, now_ms: u64) -> Result<Ticket, TicketError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TicketError::Forged);
        }
        let (body, signature) = token.split_once('.').ok_or(TicketError::Forged)?;
        let signature = BASE64.decode(signature).map_err(|_| TicketError::Forged)?;
        self.signature(body).verify_slice(&signature).map_err(|_| TicketError::Forged)?; // constant time
        let body = BASE64.decode(body).map_err(|_| TicketError::Forged)?;
        let ticket: Ticket = codec::decode(&body).map_err(|_| TicketError::Forged)?;
        if now_ms < ticket.expires_ms { Ok(ticket) } else { Err(TicketError::Expired) }
    }

    fn signature(&self, body: &str) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(body.as_bytes());
        mac
    }
}

/// Returns a random number that no two tickets share.
pub fn fresh_nonce() -> u128 {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    u128::from_be_bytes(bytes)
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            app: "10001".parse().unwrap(),
            user: "285608972927369217".parse().unwrap(),
            nick_name: "安".into(),
            avatar: String::new(),
            expires_ms: 1000,
            nonce: fresh_nonce(),
        }
    }

    #[test]
    fn a_token_is_valid_until_it_expires() {
        let key = TicketKey::derive(&Secret::new("s"));
        let token = key.sign(&ticket()).unwrap();
        assert_eq!(key.verify(token.expose(), 999).unwrap().user, ticket().user);
        assert_eq!(key.verify(token.expose(), 1000), Err(TicketError::Expired));
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        assert!(token.expose().chars().all(allowed));
    }

    #[test]
    fn a_changed_byte_or_another_key_is_refused() {
        let key = TicketKey::derive(&Secret::new("s"));
        let token = key.sign(&ticket()).unwrap().expose().to_owned();
        for at in 0..token.len() {
            let mut forged = token.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            assert_eq!(key.verify(&forged, 0), Err(TicketError::Forged), "byte {at}");
        }
        let other = TicketKey::derive(&Secret::new("t"));
        assert_eq!(other.verify(&token, 0), Err(TicketError::Forged));
    }
}
