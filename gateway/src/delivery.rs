//! Delivery: from envelopes to connections, and from their acknowledgements to
//! outcomes.
//!
//! The core decides and does no I/O: [`core`](self::core) has its inputs
//! (`input`), its actions (`action`) and, in one file per topic, its rules. Begin
//! with `rooms` and `members`. The task owns the core, carries its actions out
//! (`task`, `carry_out`), and reaches the rest of the gateway through `handle`.

mod action;
mod append_unacked;
mod carry_out;
pub(crate) mod connection;
mod handle;
mod ids;
mod input;
mod log_reads;
mod recorder;
mod task;

// The core.
mod acks;
mod closing;
mod connections;
mod core;
mod direct;
mod gaps;
mod in_flight;
mod members;
mod outcomes;
mod reassign;
mod retry;
mod rooms;
mod sends;
mod state;
mod unacked;

pub(crate) use self::{
    handle::{DeliveryHandle, DeliveryRequests},
    input::MissedMessage,
    log_reads::room_filters,
    recorder::{Recorder, RecorderRequest},
    state::RetryPolicy,
    task::{DeliveryContext, DeliveryTask},
};

#[cfg(test)]
mod model;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod test_bed;
