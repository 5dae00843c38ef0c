//! Settings of a gateway.

use std::{net::SocketAddr, time::Duration};

use qiyu_schema::{AppId, GatewayId, ticket::TicketKey};

use crate::send::content::ContentConfig;

/// Settings of a gateway; defaults are in the root package's settings table.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its lasting name.
    pub id: GatewayId,
    /// Where WebSockets are accepted.
    pub ws_listen: SocketAddr,
    /// Where TCP connections are accepted.
    pub tcp_listen: SocketAddr,
    /// Where clients reach the WebSocket port. `None`: the listen address.
    pub advertise_ws: Option<String>,
    /// Where clients reach the TCP port. `None`: the listen address.
    pub advertise_tcp: Option<String>,
    /// Tenants that may log in.
    pub apps: Vec<AppId>,
    /// How long a connection has to acknowledge before a message is sent again.
    pub ack_wait: Duration,
    /// Copies of a message a connection gets at most.
    pub max_sends: u32,
    /// Silence after which a connection is closed.
    pub idle_timeout: Duration,
    /// How long a connection may take to log in.
    pub login_deadline: Duration,
    /// Bytes of body a frame may have.
    pub max_frame: usize,
    /// Business frames a second, per connection.
    pub send_rate: f64,
    /// Business frames at once, per connection.
    pub send_burst: u32,
    /// Business frames a second, per user: all their connections here. 0: no limit.
    pub user_rate: f64,
    /// Business frames at once, per user.
    pub user_burst: u32,
    /// Business frames a second, per address. 0: no limit.
    pub address_rate: f64,
    /// Business frames at once, per address.
    pub address_burst: u32,
    /// Messages a second to one room, through this gateway. 0: no limit.
    pub room_rate: f64,
    /// Messages at once to one room.
    pub room_burst: u32,
    /// New connections a second, per address and per user.
    pub connect_rate: f64,
    /// New connections at once, per address and per user.
    pub connect_burst: u32,
    /// What a further login of the same user means.
    pub multi_device: MultiDevice,
    /// Web origins that may connect. Empty: only pages of the same host; `*`: all.
    pub origins: Vec<String>,
    /// How long a stopping gateway gives its clients to move.
    pub drain_window: Duration,
    /// How content is checked.
    pub content: ContentConfig,
    /// What tickets are signed with.
    pub ticket_key: TicketKey,
}

/// What a further login of the same user means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultiDevice {
    /// One more device, up to five.
    Allow,
    /// The older ones are closed.
    Replace,
}
