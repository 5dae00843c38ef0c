//! The settings of a gateway.

use std::{net::SocketAddr, time::Duration};

use qiyu_schema::{AppId, GatewayId, ticket::TicketKey};

use crate::send::content::ContentConfig;

/// The settings of a gateway; defaults are in the root package's settings table.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name that all incarnations of this gateway share.
    pub id: GatewayId,
    pub ws_listen: SocketAddr,
    pub tcp_listen: SocketAddr,
    /// The address at which clients reach the WebSocket port. `None`: the listen
    /// address.
    pub advertise_ws: Option<String>,
    /// The address at which clients reach the TCP port. `None`: the listen
    /// address.
    pub advertise_tcp: Option<String>,
    /// The apps (tenants) that users may log in to.
    pub apps: Vec<AppId>,
    /// How long a connection may take to acknowledge before a message is sent again.
    pub ack_wait: Duration,
    /// Copies of a message that a connection gets at most.
    pub max_sends: u32,
    /// Silence after which a connection is closed.
    pub idle_timeout: Duration,
    /// How long a connection may take to log in.
    pub login_deadline: Duration,
    /// Bytes of a frame's body at most.
    pub max_frame: usize,
    /// Business frames a second, per connection.
    pub send_rate: f64,
    pub send_burst: u32,
    /// Business frames a second, per user with all connections here. 0: no limit.
    pub user_rate: f64,
    pub user_burst: u32,
    /// Business frames a second, per address. 0: no limit.
    pub address_rate: f64,
    pub address_burst: u32,
    /// Messages a second to one room, through this gateway. 0: no limit.
    pub room_rate: f64,
    pub room_burst: u32,
    /// New connections a second, per address and per user. 0: no limit.
    pub connect_rate: f64,
    pub connect_burst: u32,
    pub multi_device: MultiDevice,
    /// Web origins that may connect. Empty: only pages of the same host; `*`: all.
    pub origins: Vec<String>,
    /// How long a drain gives clients to move to another gateway.
    pub drain_window: Duration,
    pub content: ContentConfig,
    /// The key that tickets are signed with.
    pub ticket_key: TicketKey,
}

/// The effect of a further login of the same user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultiDevice {
    /// A user may have up to five connections.
    Allow,
    /// The older connections are closed.
    Replace,
}
