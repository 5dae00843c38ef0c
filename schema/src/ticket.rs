//! The token of the IM connection: a signed ticket, good for one connection.
//!
//! It carries who its holder is, so a gateway needs no other service to let
//! somebody in. That it is used once is the bucket `tickets`' business.

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

/// What a ticket says of its holder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ticket {
    /// The one app it is good for.
    #[serde(rename = "a")]
    pub app: AppId,
    /// The one user it is good for.
    #[serde(rename = "u")]
    pub user: UserId,
    /// Shown as the sender of messages.
    #[serde(rename = "n")]
    pub nick_name: String,
    /// Shown beside the name; a URL or empty.
    #[serde(rename = "i")]
    pub avatar: String,
    /// Not valid from this moment on, ms since 1970.
    #[serde(rename = "x")]
    pub expires_ms: u64,
    /// Told apart from every other ticket by this.
    #[serde(rename = "r")]
    pub nonce: u128,
}

/// Why a token is not a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not of the form this system gives out, or signed with another key.
    #[error("not a ticket of this system")]
    Forged,
    /// Its time is over.
    #[error("the ticket has expired")]
    Expired,
}

/// A token longer than this was not made here: nick and avatar are bounded.
pub const TOKEN_BYTES_MAX: usize = 2048;

/// What tickets are signed with. Gateways and api derive it from the same secret.
#[derive(Clone)]
pub struct TicketKey(Hmac<Sha256>);

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKey(***)")
    }
}

impl TicketKey {
    /// The key that belongs to `secret`: a ticket can never be mistaken for a
    /// JWT signed with the same secret.
    pub fn derive(secret: &Secret) -> Self {
        let mut mac = keyed(secret.expose().as_bytes());
        mac.update(b"qiyu ticket v1");
        Self(keyed(&mac.finalize().into_bytes()))
    }

    /// Writes a ticket as a token of `A-Za-z0-9._-`.
    ///
    /// # Errors
    ///
    /// None in practice: a ticket is plain data.
    pub fn sign(&self, ticket: &Ticket) -> Result<Secret, codec::EncodeError> {
        let body = BASE64.encode(codec::encode(ticket)?);
        let mark = BASE64.encode(self.mark(&body).finalize().into_bytes());
        Ok(Secret::new(format!("{body}.{mark}")))
    }

    /// Reads a token back, if it was signed with this key and is still valid at `now_ms`.
    ///
    /// # Errors
    ///
    /// - [`TicketError::Forged`]: anything but a token of ours.
    /// - [`TicketError::Expired`]: ours, too late.
    pub fn verify(&self, token: &str, now_ms: u64) -> Result<Ticket, TicketError> {
        if TOKEN_BYTES_MAX < token.len() {
            return Err(TicketError::Forged);
        }
        let (body, mark) = token.split_once('.').ok_or(TicketError::Forged)?;
        let mark = BASE64.decode(mark).map_err(|_| TicketError::Forged)?;
        self.mark(body).verify_slice(&mark).map_err(|_| TicketError::Forged)?; // constant time
        let body = BASE64.decode(body).map_err(|_| TicketError::Forged)?;
        let ticket: Ticket = codec::decode(&body).map_err(|_| TicketError::Forged)?;
        if now_ms < ticket.expires_ms { Ok(ticket) } else { Err(TicketError::Expired) }
    }

    fn mark(&self, body: &str) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(body.as_bytes());
        mac
    }
}

/// A number no two tickets share.
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
    fn a_token_reads_back_until_it_expires() {
        let key = TicketKey::derive(&Secret::new("s"));
        let token = key.sign(&ticket()).unwrap();
        assert_eq!(key.verify(token.expose(), 999).unwrap().user, ticket().user);
        assert_eq!(key.verify(token.expose(), 1000), Err(TicketError::Expired));
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        assert!(token.expose().chars().all(allowed));
    }

    #[test]
    fn every_changed_byte_and_every_other_key_is_refused() {
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
