//! A client's session: login, resume, the events of joining and leaving.

pub(crate) mod login;
pub(crate) mod membership;
pub(crate) mod registry;
pub(crate) mod resume;
