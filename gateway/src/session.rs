//! A client's session: login, resume, membership events, the registry of
//! connections, departure.

pub(crate) mod departure;
pub(crate) mod identity;
pub(crate) mod login;
pub(crate) mod membership;
pub(crate) mod registry;
pub(crate) mod resume;
