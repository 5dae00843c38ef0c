//! The routes for integrators: JSON in, JSON out, HTTP status codes, and an API key.
//!
//! The same calls are answered over NATS as `qiyu.server.<verb>`, where the permissions of the bus
//! decide which client may make them.

mod call;
mod error;
mod ids;
mod members;
mod online;
mod sanctions;
mod send;
mod ticket;

use std::sync::Arc;

use axum::{body::Bytes, extract::DefaultBodyLimit};
use qiyu_nats::{chain, service::CommandService};
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
    register::<send::SendRequest>(service, context, "send").await?;
    register::<send::SendBatchRequest>(service, context, "batchSend").await?;
    register::<ticket::TicketRequest>(service, context, "token").await?;
    register::<online::OnlineRequest>(service, context, "online").await?;
    register::<members::RoomMembersRequest>(service, context, "members").await?;
    register::<sanctions::KickRequest>(service, context, "kick").await?;
    register::<sanctions::MuteRequest>(service, context, "mute").await?;
    register::<sanctions::UnmuteRequest>(service, context, "unmute").await?;
    register::<sanctions::BanRequest>(service, context, "ban").await?;
    register::<sanctions::UnbanRequest>(service, context, "unban").await?;
    register::<sanctions::ListSanctionsRequest>(service, context, "measures").await
}

async fn register<C: ServerCall>(
    service: &CommandService,
    context: &Arc<ApiContext>,
    verb: &'static str,
) -> Result<(), RegisterError> {
    let context = Arc::clone(context);
    let handler = move |payload: Bytes| {
        let context = Arc::clone(&context);
        async move {
            let response = decode::<C>(&payload)?.handle(&context).await?;
            serde_json::to_vec(&response).map(Bytes::from).map_err(|error| {
                warn!(verb, error = %chain(&error), "answer not encoded");
                ServerError::system().into()
            })
        }
    };
    service.call(GROUP, verb, handler).await
}
