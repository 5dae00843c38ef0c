//! The commands that other services send to a gateway incarnation.

use std::sync::Arc;

use qiyu_nats::service::CommandRefusal;
use qiyu_schema::{
    command::{EndRoom, ReplaceSession},
    subject,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{instance::GatewayInstance, text};

/// Serves the commands until `stop`.
pub(crate) async fn serve(
    instance: &Arc<GatewayInstance>,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let service =
        instance.bus.command_service("qiyu-gateway", "Client connections", tasks, stop).await?;
    let group = service.group(subject::gateway_commands(&instance.gateway));
    group.endpoint(instance, end_room).await?;
    group
        .endpoint(instance, |instance, command: ReplaceSession| {
            instance.replace(command.connection);
            std::future::ready(Ok(()))
        })
        .await
}

async fn end_room(
    instance: Arc<GatewayInstance>,
    EndRoom { app, room, .. }: EndRoom,
) -> Result<(), CommandRefusal> {
    let ended = instance.delivery.end_room(app, room).await;
    ended.map_err(|_| CommandRefusal { code: 503, message: text::ENDING.into() })
}
