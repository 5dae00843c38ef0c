//! What the stories are told with: a running qiyu, people, and their connections.
//!
//! Everything here is outside the system: it starts the real program and speaks to it over real
//! sockets, from `docs/PROTOCOL.md` alone. Nothing is shared with the code under test.

mod bus;
pub(crate) mod chromium;
mod hearing;
mod http;
mod nats_server;
mod person;
mod process;
mod site;
mod socket;
mod speaking;
mod stack;
mod tcp;
mod terminal;
pub(crate) mod users;
mod wait;
mod wire;
mod ws;

pub(crate) use bus::{Nats, packed};
pub(crate) use http::{Answer, How, Reply, Request, percent};
pub(crate) use nats_server::NatsServer;
pub(crate) use person::{APP, Person, Room};
pub(crate) use process::{Process, run_to_end};
pub(crate) use site::Door;
pub(crate) use socket::{Heard, Receipt, Socket, fresh_id, msg_ids};
pub(crate) use stack::{FAST, Stack, Victim};
pub(crate) use tcp::{frame, frame_claiming};
pub(crate) use terminal::on_a_terminal;
pub(crate) use test_servers::{MariaDb, PASSWORD, Redis};
pub(crate) use wait::{PATIENCE, eventually};
pub(crate) use wire::Wire;
