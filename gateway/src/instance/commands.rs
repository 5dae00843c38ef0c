//! The commands that other services send to a gateway incarnation.

use std::sync::Arc;

use qiyu_nats::service::CommandRefusal;
use qiyu_schema::{
    command::{EndRoom, ReplaceSession},
    subject,
};
use tokio::sync::oneshot;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{delivery::Order, instance::GatewayInstance, text};

/// Serves the commands until `stop`.
pub(crate) async fn serve(
    instance: &Arc<GatewayInstance>,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let group = subject::gateway_commands(&instance.gateway);
    let service =
        instance.bus.command_service("qiyu-gateway", "Client connections", tasks, stop).await?;
    let ending = Arc::clone(instance);
    service
        .endpoint::<EndRoom, _, _>(&group, move |EndRoom { app, room, .. }| {
            let instance = Arc::clone(&ending);
            async move {
                let gone = || CommandRefusal { code: 503, message: text::ENDING.into() };
                let (done, ended) = oneshot::channel();
                let order = Order::EndRoom { app, room, done };
                instance.orders.send(order).await.map_err(|_| gone())?;
                ended.await.map_err(|_| gone())
            }
        })
        .await?;
    let replacing = Arc::clone(instance);
    service
        .endpoint::<ReplaceSession, _, _>(&group, move |command: ReplaceSession| {
            replacing.replace(command.connection);
            std::future::ready(Ok(()))
        })
        .await
}
