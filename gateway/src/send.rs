//! A message from a client: parsed, checked, appended to the log, answered.

pub(crate) mod content;
pub(crate) mod ingest;
pub(crate) mod request;
pub(crate) mod sanctions;
