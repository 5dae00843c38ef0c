//! The namespace of a sender's client message ids.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::id::{InvalidId, UserId};

/// The scope in which a client message id names one message.
///
/// Each user has a namespace of their own, and the server API has one more. No
/// client can therefore use up an idempotency key of an integrator, even when
/// the server API sends in the name of that client's user. The type exists so
/// that the user a message is sent for cannot be passed as its namespace:
///
/// ```compile_fail
/// let user: qiyu_schema::UserId = "100001".parse().unwrap();
/// let namespace: qiyu_schema::Namespace = Some(user);
/// ```
///
/// It is stored and sent as an optional user id; `None` is the server API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Namespace(Option<UserId>);

impl Namespace {
    /// The namespace of the server API.
    pub const SERVER: Self = Self(None);

    /// Returns the namespace of the messages that `user` sends on a connection.
    pub const fn of_user(user: UserId) -> Self {
        Self(Some(user))
    }
}

/// The user id, or `servers` for the namespace of the server API.
impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(user) => user.fmt(f),
            None => f.write_str(SERVERS),
        }
    }
}

impl FromStr for Namespace {
    type Err = InvalidId;
    fn from_str(raw: &str) -> Result<Self, InvalidId> {
        if raw == SERVERS { Ok(Self::SERVER) } else { raw.parse().map(Self::of_user) }
    }
}

const SERVERS: &str = "servers";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn a_namespace_is_stored_as_an_optional_user_id() {
        let user: UserId = "285608972927369217".parse().unwrap();
        for (namespace, stored) in
            [(Namespace::of_user(user), Some(user)), (Namespace::SERVER, None)]
        {
            let bytes = codec::encode(&stored).unwrap();
            assert_eq!(codec::encode(&namespace).unwrap(), bytes);
            assert_eq!(codec::decode::<Namespace>(&bytes).unwrap(), namespace);
            assert_eq!(namespace.to_string().parse(), Ok(namespace));
        }
    }
}
