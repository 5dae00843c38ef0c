//! Commands over NATS micro services: discoverable and load-balanced, in place
//! of another RPC.

use std::{future::Future, sync::Arc, time::Duration};

use async_nats::service::{Service, ServiceExt, error::Error as MicroError};
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

/// The refusal of a command by the service that handled it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CommandRefusal {
    /// The HTTP status that api responds with: 400 to 599.
    pub code: u16,
    /// For display to a user.
    pub message: String,
}

/// A command without a response of its own type.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Refused(CommandRefusal),
    /// No process serves the command at present.
    #[error("nobody answers {subject}")]
    NoResponder { subject: String },
    /// No response came in time, or it cannot be decoded. The command may have
    /// been carried out.
    #[error("no answer to {subject}")]
    NoResponse { subject: String, source: async_nats::Error },
}

/// Commands that one endpoint handles at once. Further ones wait in its subscription.
const CONCURRENT_MAX: usize = 256;
/// A partition may have no owner for this long: the lease of a dead one, and a claim.
const OWNER_TIMEOUT: Duration = Duration::from_secs(6);
/// Pause between requests while a partition has no owner.
const OWNER_RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Time a command may take.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(12);

impl Bus {
    /// Sends a command to a service group and waits for the response.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn request<C: Command>(
        &self,
        group: &str,
        command: &C,
    ) -> Result<C::Reply, CommandError> {
        self.request_with_timeout(group, command, COMMAND_TIMEOUT).await
    }

    /// Sends a command to the owner of a partition. If the partition is being
    /// reassigned and has no owner, this waits for the next one.
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
                ) if started.elapsed() < OWNER_TIMEOUT => {
                    tokio::time::sleep(OWNER_RETRY_INTERVAL).await;
                }
                response => return response,
            }
        }
    }

    /// Sends a command and waits no longer than `timeout` for the response.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn request_with_timeout<C: Command>(
        &self,
        group: &str,
        command: &C,
        timeout: Duration,
    ) -> Result<C::Reply, CommandError> {
        let subject = format!("{group}.{}", C::VERB);
        let no_response = |source| CommandError::NoResponse { subject: subject.clone(), source };
        let payload = codec::encode(command).map_err(|error| no_response(error.into()))?;
        let request = async_nats::Request::new().payload(payload).timeout(Some(timeout));
        let response = match self.control.client().send_request(subject.clone(), request).await {
            Ok(response) => response,
            Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
                return Err(CommandError::NoResponder { subject });
            }
            Err(error) => return Err(no_response(error.into())),
        };
        let header = |name: &str| response.headers.as_ref()?.get(name);
        if let Some(code) = header("Nats-Service-Error-Code") {
            let message = header("Nats-Service-Error");
            return Err(CommandError::Refused(CommandRefusal {
                code: code.as_str().parse().unwrap_or(500),
                message: message.map(|text| text.as_str().to_owned()).unwrap_or_default(),
            }));
        }
        codec::decode(&response.payload).map_err(|error| no_response(error.into()))
    }

    /// Announces a service of this process. Its endpoints respond until `stop`.
    ///
    /// # Errors
    ///
    /// Fails when the connection is closed.
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
}

/// A service of this process. Cheap to clone.
#[derive(Clone)]
pub struct CommandService {
    /// Every endpoint holds it too: dropping it would silence them all.
    service: Arc<Service>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl CommandService {
    /// Returns a group of endpoints, whose subjects begin with `name`.
    pub fn group(&self, name: impl Into<String>) -> CommandGroup {
        CommandGroup { service: self.clone(), name: name.into() }
    }
}

/// A group of endpoints of a service.
#[derive(Clone)]
pub struct CommandGroup {
    service: CommandService,
    name: String,
}

impl CommandGroup {
    /// Returns the same group, whose further endpoints respond until `stop` only.
    #[must_use]
    pub fn until(mut self, stop: CancellationToken) -> Self {
        self.service.stop = stop;
        self
    }

    /// Registers the handler of one command under `<group>.<verb>`. Each call of
    /// the handler gets a clone of `state`.
    ///
    /// # Errors
    ///
    /// Fails when the connection is closed.
    pub async fn endpoint<C, S, F, Fut>(
        &self,
        state: &S,
        handler: F,
    ) -> Result<(), async_nats::Error>
    where
        C: Command,
        S: Clone + Send + Sync + 'static,
        F: Fn(S, C) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<C::Reply, CommandRefusal>> + Send + 'static,
    {
        let (state, handler) = (state.clone(), Arc::new(handler));
        self.serve(C::VERB, move |payload| {
            let (state, handler) = (state.clone(), Arc::clone(&handler));
            async move {
                let command =
                    codec::decode(&payload).map_err(|error| failure(400, error.to_string()))?;
                let reply = handler(state, command).await.map_err(refusal)?;
                codec::encode(&reply).map_err(|error| failure(500, error.to_string()))
            }
        })
        .await
    }

    /// Registers the handler of calls from outside this system under
    /// `<group>.<verb>`. The two sides agree on the payload and the response.
    ///
    /// # Errors
    ///
    /// Fails when the connection is closed.
    pub async fn raw_endpoint<F, Fut>(
        &self,
        verb: &'static str,
        handler: F,
    ) -> Result<(), async_nats::Error>
    where
        F: Fn(Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, CommandRefusal>> + Send + 'static,
    {
        self.serve(verb, move |payload| {
            let response = handler(payload);
            async move { response.await.map_err(refusal) }
        })
        .await
    }

    async fn serve<F, Fut>(&self, verb: &'static str, handler: F) -> Result<(), async_nats::Error>
    where
        F: Fn(Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, MicroError>> + Send + 'static,
    {
        let CommandService { service, tasks, stop } = self.service.clone();
        let group = service.group(&self.name);
        let mut endpoint = group.endpoint_builder().name(verb).add(verb).await?;
        let (handlers, handler) = (tasks.clone(), Arc::new(handler));
        let permits = Arc::new(Semaphore::new(CONCURRENT_MAX));
        tasks.spawn(async move {
            let _service = service;
            while let Some(Some(request)) = stop.run_until_cancelled(endpoint.next()).await {
                let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
                let handler = Arc::clone(&handler);
                handlers.spawn(async move {
                    let _permit = permit;
                    let response = handler(request.message.payload.clone()).await;
                    if let Err(error) = request.respond(response).await {
                        warn!(verb, error = %chain(&error), "answer not sent");
                    }
                });
            }
        });
        Ok(())
    }
}

fn refusal(refusal: CommandRefusal) -> MicroError {
    failure(refusal.code, refusal.message)
}

fn failure(code: u16, status: String) -> MicroError {
    MicroError { code: code.into(), status }
}
