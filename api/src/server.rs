//! The routes for integrators: JSON in, JSON out, HTTP status codes, and an API key.
//!
//! The same calls are answered over NATS as `qiyu.server.<verb>`, where the permissions of the bus
//! decide which client may make them.

mod call;
mod error;
mod ids;
mod members;
mod message_data;
mod online;
mod sanctions;
mod send;
mod send_request;
mod ticket;

use std::sync::Arc;

use axum::{body::Bytes, extract::DefaultBodyLimit};
use qiyu_nats::{
    chain,
    service::{CommandGroup, CommandService},
};
use tracing::warn;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) use call::has_api_key;
pub(crate) use error::ServerError;
pub(crate) use sanctions::{SanctionList, end_of_sanction};

use crate::context::ApiContext;
use call::{ServerCall, decode};

/// The longest body: a batch of a hundred messages of less than the largest size.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// The prefix of the paths.
pub(crate) const PREFIX: &str = "/server/";
/// The group of the NATS endpoints.
const GROUP: &str = "qiyu.server";

/// Makes the routes with their description.
pub(crate) fn router() -> OpenApiRouter<Arc<ApiContext>> {
    OpenApiRouter::new()
        .routes(routes!(send::send))
        .routes(routes!(send::send_batch))
        .routes(routes!(ticket::token))
        .routes(routes!(online::online))
        .routes(routes!(members::members))
        .routes(routes!(sanctions::kick))
        .routes(routes!(sanctions::mute))
        .routes(routes!(sanctions::unmute))
        .routes(routes!(sanctions::ban))
        .routes(routes!(sanctions::unban))
        .routes(routes!(sanctions::measures))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

type RegisterError = Box<dyn std::error::Error + Send + Sync>;

/// Registers the same calls as NATS endpoints.
///
/// # Errors
///
/// The connection is closed.
pub(crate) async fn register_endpoints(
    service: &CommandService,
    context: &Arc<ApiContext>,
) -> Result<(), RegisterError> {
    let group = &service.group(GROUP);
    register::<send_request::SendRequest>(group, context, "send").await?;
    register::<send_request::SendBatchRequest>(group, context, "batchSend").await?;
    register::<ticket::TicketRequest>(group, context, "token").await?;
    register::<online::OnlineRequest>(group, context, "online").await?;
    register::<members::RoomMembersRequest>(group, context, "members").await?;
    register::<sanctions::KickRequest>(group, context, "kick").await?;
    register::<sanctions::MuteRequest>(group, context, "mute").await?;
    register::<sanctions::UnmuteRequest>(group, context, "unmute").await?;
    register::<sanctions::BanRequest>(group, context, "ban").await?;
    register::<sanctions::UnbanRequest>(group, context, "unban").await?;
    register::<sanctions::ListSanctionsRequest>(group, context, "measures").await
}

async fn register<C: ServerCall>(
    group: &CommandGroup,
    context: &Arc<ApiContext>,
    verb: &'static str,
) -> Result<(), RegisterError> {
    let context = Arc::clone(context);
    let handler = move |payload: Bytes| {
        let context = Arc::clone(&context);
        async move {
            let response = decode::<C>(&payload)?.handle(&context).await?;
            serde_json::to_vec(&response).map(Bytes::from).map_err(|error| {
                warn!(verb, error = %chain(&error), "response not encoded");
                ServerError::system().into()
            })
        }
    };
    group.raw_endpoint(verb, handler).await
}
