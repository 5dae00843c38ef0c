//! Commands over NATS micro services: discoverable, load-balanced, in place of RPC.

use std::{future::Future, sync::Arc, time::Duration};

use async_nats::service::{ServiceExt, error::Error as MicroError};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use crate::{bus::Bus, chain};
use qiyu_schema::{
    codec,
    command::{Command, fold_group},
    id::Partition,
};

/// A command that was heard and refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CommandRefusal {
    /// As the HTTP edge will say it: 400 to 599.
    pub code: u16,
    /// For a person; safe to show.
    pub message: String,
}

/// A command without an answer of its own kind.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Whoever should do it said no.
    #[error(transparent)]
    Refused(CommandRefusal),
    /// Nobody answers such commands at the moment.
    #[error("nobody answers {subject}")]
    NoResponder {
        /// The command's subject.
        subject: String,
    },
    /// No answer in time, or none that can be read. It may have been done.
    #[error("no answer to {subject}")]
    NoResponse {
        /// The command's subject.
        subject: String,
        /// Why.
        source: async_nats::Error,
    },
}

/// Commands one endpoint works on at once; further ones wait in its subscription.
const CONCURRENT_MAX: usize = 256;
/// How long a partition may be without an owner: the lease of a dead one, and a claim.
const OWNER_PATIENCE: Duration = Duration::from_secs(6);
/// Between questions to an owner that is not there yet.
const OWNER_RETRY: Duration = Duration::from_millis(100);
/// How long a command may take.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(12);

/// A named group of endpoints answered by this process.
#[derive(Clone)]
pub struct CommandService {
    /// Held by every endpoint too: dropped, it would silence them all.
    service: Arc<async_nats::service::Service>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Bus {
    /// Announces a service of this process. It answers until `stop`.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
    pub async fn command_service(
        &self,
        name: &str,
        description: &str,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<CommandService, async_nats::Error> {
        let service = self
            .control
            .client()
            .service_builder()
            .description(description)
            .start(name, env!("CARGO_PKG_VERSION"))
            .await?;
        Ok(CommandService { service: Arc::new(service), tasks: tasks.clone(), stop })
    }

    /// Asks the service group `to`, and waits for the answer.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn request<C: Command>(
        &self,
        to: &str,
        command: &C,
    ) -> Result<C::Reply, CommandError> {
        self.request_with_timeout(to, command, COMMAND_TIMEOUT).await
    }

    /// Asks the owner of a partition. While it changes hands it has none; that is waited for.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn request_owner<C: Command>(
        &self,
        partition: Partition,
        command: &C,
    ) -> Result<C::Reply, CommandError> {
        let (owner, started) = (fold_group(partition), Instant::now());
        loop {
            match self.request(&owner, command).await {
                Err(
                    CommandError::NoResponder { .. }
                    | CommandError::Refused(CommandRefusal { code: 503, .. }),
                ) if started.elapsed() < OWNER_PATIENCE => {
                    tokio::time::sleep(OWNER_RETRY).await;
                }
                answer => return answer,
            }
        }
    }

    /// Asks, and waits no longer than `patience`.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn request_with_timeout<C: Command>(
        &self,
        to: &str,
        command: &C,
        patience: Duration,
    ) -> Result<C::Reply, CommandError> {
        let subject = format!("{to}.{}", C::VERB);
        let silent = |source| CommandError::NoResponse { subject: subject.clone(), source };
        let payload = codec::encode(command).map_err(|error| silent(error.into()))?;
        let request = async_nats::Request::new().payload(payload).timeout(Some(patience));
        let answer = match self.control.client().send_request(subject.clone(), request).await {
            Ok(answer) => answer,
            Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
                return Err(CommandError::NoResponder { subject });
            }
            Err(error) => return Err(silent(error.into())),
        };
        if let Some(code) = answer.headers.as_ref().and_then(|h| h.get("Nats-Service-Error-Code")) {
            let message = answer.headers.as_ref().and_then(|h| h.get("Nats-Service-Error"));
            return Err(CommandError::Refused(CommandRefusal {
                code: code.as_str().parse().unwrap_or(500),
                message: message.map(|m| m.as_str().to_owned()).unwrap_or_default(),
            }));
        }
        codec::decode(&answer.payload).map_err(|error| silent(error.into()))
    }
}

impl CommandService {
    /// Answers commands of one kind under `<group>.<verb>`.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
    pub async fn endpoint<C, F, Fut>(
        &self,
        group: &str,
        handler: F,
    ) -> Result<(), async_nats::Error>
    where
        C: Command,
        F: Fn(C) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<C::Reply, CommandRefusal>> + Send + 'static,
    {
        self.endpoint_until(group, self.stop.clone(), handler).await
    }

    /// As [`CommandService::endpoint`], for as long as `stop` is not cancelled.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
    pub async fn endpoint_until<C, F, Fut>(
        &self,
        group: &str,
        stop: CancellationToken,
        handler: F,
    ) -> Result<(), async_nats::Error>
    where
        C: Command,
        F: Fn(C) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<C::Reply, CommandRefusal>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let answering = move |payload: Bytes| {
            let handler = Arc::clone(&handler);
            async move { answer::<C, _, _>(&*handler, &payload).await }
        };
        self.serve(group, C::VERB, stop, answering).await
    }

    /// Answers calls of strangers under `<group>.<verb>`: payload and answer are
    /// whatever the two have agreed on.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
    pub async fn call<F, Fut>(
        &self,
        group: &str,
        verb: &'static str,
        handler: F,
    ) -> Result<(), async_nats::Error>
    where
        F: Fn(Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, CommandRefusal>> + Send + 'static,
    {
        let answering = move |payload: Bytes| {
            let answered = handler(payload);
            async move {
                answered.await.map_err(|CommandRefusal { code, message }| refuse(code, message))
            }
        };
        self.serve(group, verb, self.stop.clone(), answering).await
    }

    async fn serve<F, Fut>(
        &self,
        group: &str,
        verb: &'static str,
        stop: CancellationToken,
        handler: F,
    ) -> Result<(), async_nats::Error>
    where
        F: Fn(Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, MicroError>> + Send + 'static,
    {
        let mut endpoint =
            self.service.group(group).endpoint_builder().name(verb).add(verb).await?;
        let (tasks, handler) = (self.tasks.clone(), Arc::new(handler));
        let places = Arc::new(Semaphore::new(CONCURRENT_MAX));
        let service = Arc::clone(&self.service);
        self.tasks.spawn(async move {
            let _service = service;
            while let Some(Some(request)) = stop.run_until_cancelled(endpoint.next()).await {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let handler = Arc::clone(&handler);
                tasks.spawn(async move {
                    let _place = place;
                    let answer = handler(request.message.payload.clone()).await;
                    if let Err(error) = request.respond(answer).await {
                        warn!(verb, error = %chain(&error), "answer not sent");
                    }
                });
            }
        });
        Ok(())
    }
}

fn refuse(code: u16, status: String) -> MicroError {
    MicroError { code: code.into(), status }
}

async fn answer<C, F, Fut>(handler: &F, payload: &[u8]) -> Result<Bytes, MicroError>
where
    C: Command,
    F: Fn(C) -> Fut,
    Fut: Future<Output = Result<C::Reply, CommandRefusal>>,
{
    let command = codec::decode(payload).map_err(|error| refuse(400, error.to_string()))?;
    match handler(command).await {
        Ok(reply) => codec::encode(&reply).map_err(|error| refuse(500, error.to_string())),
        Err(refusal) => Err(refuse(refusal.code, refusal.message)),
    }
}
