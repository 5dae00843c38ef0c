//! A message from a client: parsed, checked, built into an event, appended to
//! the log, answered.

pub(crate) mod checks;
pub(crate) mod content;
pub(crate) mod event;
pub(crate) mod ingest;
pub(crate) mod likes;
pub(crate) mod queue;
pub(crate) mod request;
pub(crate) mod sanctions;
