//! The start and the end of a gateway incarnation, and the tasks that run it.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use parking_lot::Mutex;
use qiyu_nats::{
    backpressure::Backpressure,
    bucket::BucketError,
    chain,
    notice::Notices,
    outbox::{Outbox, OutboxError},
    stream::BucketName,
};
use qiyu_presence::{RegisterError, Registration, Sessions};
use qiyu_schema::event::SessionChange;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{
    GatewayInstance, commands,
    enforcement::watch_sanctions,
    housekeeping::{UNPLANNED_CLOSE_WINDOW, run_housekeeping},
};
use crate::{
    close::CloseReason,
    delivery::{
        DeliveryContext, DeliveryHandle, DeliveryRequests, DeliveryTask, Recorder, RecorderRequest,
        RetryPolicy,
    },
    gateway::inner::GatewayInner,
    send::{likes::LikeCounter, sanctions::Sanctions},
    session::{membership::MembershipWriter, registry::ConnectionRegistry},
};

/// How long the tasks of an ended incarnation may take to finish.
const TASKS_TIMEOUT: Duration = Duration::from_secs(5);
/// How much longer than the drain window a stop waits for the drain to finish.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An incarnation of the gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum InstanceStartError {
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error("follow the bucket of sanctions")]
    Sanctions(#[source] BucketError),
    #[error("subscribe to notices, commands or lags")]
    Listen(#[source] BoxError),
}

/// The reason why an incarnation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstanceEnd {
    /// The gateway was drained.
    Finished,
    /// The incarnation was declared gone, or its queue is gone. The gateway
    /// starts another one.
    Lost,
    /// The process stops without a drain.
    Stopped,
}

/// A running incarnation with its tasks.
pub(crate) struct InstanceTasks {
    instance: Arc<GatewayInstance>,
    tasks: TaskTracker,
    stop: CancellationToken,
    queue_lost: oneshot::Receiver<()>,
}

impl InstanceTasks {
    /// Registers a new incarnation, starts its tasks and announces it.
    pub(crate) async fn start(inner: &Arc<GatewayInner>) -> Result<Self, InstanceStartError> {
        let listen = |error: BoxError| InstanceStartError::Listen(error);
        let (bus, config) = (&inner.bus, &inner.config);
        let (ws, tcp) = inner.addresses.clone();
        let mut registration = Registration::register(bus, &config.id, ws, tcp).await?;
        let gateway = registration.incarnation().clone();
        // The queue and its consumer exist before fan-out learns of the incarnation.
        let outbox = bus.open_outbox(&gateway).await?;
        let notices = bus.notices(&gateway).await.map_err(|error| listen(error.into()))?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let stop_on_failure = stop.clone().drop_guard();
        registration.announce(&tasks, stop.clone()).await?;
        let sanctions = bus.bucket(BucketName::Sanctions).mirror(&tasks, stop.clone()).await;
        let sanctions = sanctions.map(Sanctions::new).map_err(InstanceStartError::Sanctions)?;
        let (delivery, requests) = DeliveryHandle::new();
        let (recorder, resolved) = mpsc::unbounded_channel();
        let membership =
            MembershipWriter::new(bus.clone(), gateway.clone(), delivery.clone(), tasks.clone());
        let instance = Arc::new(GatewayInstance {
            config: Arc::clone(config),
            bus: bus.clone(),
            gateway: gateway.clone(),
            registration: Mutex::new(Some(registration)),
            sessions: Sessions::new(bus, inner.gateways.clone()),
            membership,
            sanctions,
            content: Arc::clone(&inner.content),
            rate_limits: Arc::clone(&inner.rate_limits),
            backpressure: Backpressure::default(),
            likes: LikeCounter::default(),
            delivery,
            metrics: inner.metrics.clone(),
            tasks: TaskTracker::new(),
            draining: AtomicBool::new(false),
            registry: ConnectionRegistry::default(),
        });
        let inputs = DeliveryInputs { outbox, notices, requests, recorder };
        let queue_lost = spawn_delivery(inner, &instance, inputs, &tasks, &stop);
        spawn_recorder(&instance, resolved, &tasks, &stop);
        commands::serve(&instance, &tasks, stop.clone()).await.map_err(listen)?;
        let lags = bus.lag_reports().await.map_err(|error| listen(error.into()))?;
        tasks.spawn(watch_sanctions(Arc::clone(&instance), stop.clone()));
        tasks.spawn({
            let (instance, stop) = (Arc::clone(&instance), stop.clone());
            async move { instance.backpressure.follow(lags, stop).await }
        });
        tasks.spawn(run_housekeeping(Arc::clone(&instance), stop.clone()));
        *inner.current.write() = Some(Arc::clone(&instance));
        info!(%gateway, "gateway is announced");
        stop_on_failure.disarm();
        Ok(Self { instance, tasks, stop, queue_lost })
    }

    /// Waits until this incarnation has to end, and returns why.
    pub(crate) async fn wait_for_end(
        &mut self,
        inner: &GatewayInner,
        stop: &CancellationToken,
    ) -> InstanceEnd {
        let lease_lost = {
            let registration = self.instance.registration.lock();
            registration.as_ref().and_then(Registration::lease).map(|lease| lease.lost().clone())
        };
        let lease_lost = lease_lost.unwrap_or_default();
        tokio::select! {
            biased;
            () = inner.finish.cancelled() => InstanceEnd::Finished,
            () = stop.cancelled(), if !inner.draining.is_cancelled() => {
                // A clean stop drains first, so the drain gets the time to begin.
                let grace = inner.config.drain_window + DRAIN_GRACE;
                match tokio::time::timeout(grace, inner.finish.cancelled()).await {
                    Ok(()) => InstanceEnd::Finished,
                    Err(_) => InstanceEnd::Stopped,
                }
            }
            () = lease_lost.cancelled() => InstanceEnd::Lost,
            _ = &mut self.queue_lost => InstanceEnd::Lost,
            () = self.stop.cancelled() => InstanceEnd::Lost, // one of its tasks has ended
        }
    }

    /// Returns whether another process has registered under this gateway's id.
    pub(crate) async fn is_superseded(&self) -> bool {
        // Taken out for the request: a lock must not be held across an await.
        let Some(registration) = self.instance.registration.lock().take() else { return false };
        let superseded = registration.is_superseded().await;
        *self.instance.registration.lock() = Some(registration);
        superseded
    }

    /// Ends the incarnation: closes its connections if it was lost, ends its
    /// registration if it was drained, and stops its tasks.
    pub(crate) async fn end(self, end: InstanceEnd) {
        if end == InstanceEnd::Lost {
            warn!(gateway = %self.instance.gateway, "incarnation is lost, closing its connections");
            self.instance.close_all(UNPLANNED_CLOSE_WINDOW, |retry_after| CloseReason::Draining {
                retry_after,
            });
        }
        let registration = self.instance.registration.lock().take();
        if let (Some(registration), InstanceEnd::Finished) = (registration, end) {
            registration.deregister().await;
        }
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(TASKS_TIMEOUT, self.tasks.wait()).await.is_err() {
            warn!(gateway = %self.instance.gateway, "tasks of an ended incarnation still run");
        }
    }
}

/// The inputs of the delivery task.
struct DeliveryInputs {
    outbox: Outbox,
    notices: Notices,
    requests: DeliveryRequests,
    recorder: mpsc::UnboundedSender<RecorderRequest>,
}

/// Spawns the delivery task. The receiver fires when it has ended, which it does
/// at `stop` or when the queue is gone.
fn spawn_delivery(
    inner: &GatewayInner,
    instance: &Arc<GatewayInstance>,
    DeliveryInputs { outbox, notices, requests, recorder }: DeliveryInputs,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> oneshot::Receiver<()> {
    let config = &instance.config;
    let acting = Arc::clone(instance);
    let membership = instance.membership.clone();
    let delivery = DeliveryTask::new(DeliveryContext {
        bus: instance.bus.clone(),
        gateway: instance.gateway.clone(),
        retry_policy: RetryPolicy { ack_wait: config.ack_wait, sends_max: config.max_sends },
        metrics: instance.metrics.clone(),
        delivery: instance.delivery.clone(),
        recorder,
        tasks: tasks.clone(),
        may_act: Box::new(move || acting.may_act()),
        mark_read: Box::new(move |app, user, msg_ids| {
            // Not awaited: if it fails, the messages are sent again at a login.
            let change = SessionChange::Read { user, msg_ids };
            drop(membership.change_session(app, user, change));
        }),
    });
    let (lost, queue_lost) = oneshot::channel();
    let (finish, stop) = (inner.finish.clone(), stop.clone());
    tasks.spawn(async move {
        if let Err(error) = delivery.run(outbox, notices, requests, stop).await
            && !finish.is_cancelled()
        {
            // The incarnation was declared gone, and its queue was taken over.
            warn!(error = %chain(&error), "the gateway's queue is gone");
        }
        lost.send(()).ok(); // the receiver is gone when the incarnation has ended
    });
    queue_lost
}

/// Spawns the task that records outcomes. The incarnation ends with it: without
/// recorded outcomes nothing is acknowledged.
fn spawn_recorder(
    instance: &GatewayInstance,
    resolved: mpsc::UnboundedReceiver<RecorderRequest>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let recorder = Recorder {
        bus: instance.bus.clone(),
        gateway: instance.gateway.clone(),
        delivery: instance.delivery.clone(),
        metrics: instance.metrics.clone(),
    };
    let stop = stop.clone();
    tasks.spawn(async move {
        let recording = recorder.run(resolved, stop.clone());
        let _stop = stop.drop_guard();
        recording.await;
    });
}
