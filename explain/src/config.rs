//! The settings of the tools, which the program reads and passes.

use std::net::SocketAddr;

use qiyu_schema::{AppId, Secret};

use crate::access::LogAccessConfig;

/// Settings of the three tools.
#[derive(Clone, Debug)]
pub struct Config {
    pub log: LogAccessConfig,
    /// The first app is the default of `--app`. Never empty.
    pub apps: Vec<AppId>,
    /// Address of the playback page.
    pub http_listen: SocketAddr,
    /// Default address of playback sockets.
    pub ws_listen: SocketAddr,
    /// Origins that may open a playback socket. Empty: only the same host.
    pub origins: Vec<String>,
    /// Database of the room tables.
    pub database_url: Secret,
    /// All settings as `QIYU_X=value` lines with secrets masked, for the header of a capsule.
    pub masked: Vec<String>,
}
