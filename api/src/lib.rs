//! The HTTP API and the page.
//!
//! **Owns** the identity of a request's sender, the texts and codes of every response, the names
//! and pictures of users, the tickets for a gateway connection, and the page.
//!
//! **Never** decides about a room: it sends commands to `living`. Never puts the text of an
//! internal error into a response.
//!
//! **Reads** the gateways' leases and the users' sessions, through `presence`.
//!
//! **Writes** table `t_user`; `im.in.….msg` on behalf of integrators; pages that were read, in
//! `IM_LEDGER`. Sends commands to `qiyu.living` and answers `qiyu.server`.
//!
//! **Start at** [`router`] and [`guard`] (the steps of every request), then [`routes`] and
//! [`server`].

mod caller;
mod context;
mod describe;
mod guard;
mod identity;
mod jwks;
mod messages;
mod metrics;
mod origins;
mod page;
mod page_reads;
mod params;
mod profile;
mod response;
mod route_label;
mod router;
mod routes;
mod security_headers;
mod server;
mod service;
mod texts;
mod ticket;

pub use identity::KeyError;
pub use page::page_router;
pub use profile::ProfileError;
pub use service::{Api, Config, StartError};
