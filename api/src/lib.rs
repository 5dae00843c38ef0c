//! The HTTP edge and the page.
//!
//! **Owns** who a request comes from, the words and codes of every answer,
//! people's names and pictures, the tickets for an IM connection, the page.
//!
//! **Never** decides about a room: it asks `living`. Never answers with an
//! error's own words.
//!
//! **Reads** the gateways' leases and users' sessions, through `presence`.
//!
//! **Writes** table `t_user`; `im.in.….msg` on behalf of integrators; pages that were read in
//! `IM_LEDGER`; asks `qiyu.living`; answers `qiyu.server`.
//!
//! **Start at** [`edge`] (what a request passes), then [`routes`] and [`server`].

mod answer;
mod database;
mod describe;
mod edge;
mod identity;
mod messages;
mod metrics;
mod origins;
mod page;
mod params;
mod profile;
mod rate;
mod reads;
mod routes;
mod server;
mod service;

pub use identity::KeyError;
pub use page::page_router;
pub use profile::ProfileError;
pub use service::{Api, Config, StartError};
