//! The identity of a logged-in client.

use qiyu_schema::{AppId, UserId};

/// A client's identity, as its ticket proved it at login.
#[derive(Clone, Debug)]
pub(crate) struct ClientIdentity {
    pub(crate) app: AppId,
    pub(crate) user: UserId,
    pub(crate) nick_name: String,
    pub(crate) avatar: String,
}
