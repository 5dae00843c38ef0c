//! The log as the tools read it: points, windows, events and room states.

pub(crate) mod event_view;
pub(crate) mod point;
pub(crate) mod room_snapshot;
pub(crate) mod seed_events;
pub(crate) mod window;
