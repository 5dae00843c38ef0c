//! The state that all routes share, and the queries that several of them make.

use std::{net::IpAddr, time::Duration};

use qiyu_nats::{Bus, backpressure::Backpressure, chain, service::CommandError};
use qiyu_presence::{Gateways, Sessions};
use qiyu_runtime::limiter::KeyedLimiter;
use qiyu_schema::{
    AppId, Secret, UserId,
    command::{Command, LIVING_GROUP},
    ticket::TicketKey,
};
use tracing::warn;

use crate::{
    identity::{Identity, Keys},
    metrics::Metrics,
    origins::Origins,
    page_reads::PageReads,
    profile::{Profile, Profiles},
    response::ApiError,
    texts,
};

/// The state that all routes share.
pub(crate) struct ApiContext {
    pub(crate) bus: Bus,
    /// The app of the routes for users, which have no parameter for it.
    pub(crate) app: AppId,
    /// All apps, for the routes of integrators.
    pub(crate) apps: Vec<AppId>,
    /// The key of integrators. `None`: their routes are off.
    pub(crate) api_key: Option<Secret>,
    pub(crate) backpressure: Backpressure,
    pub(crate) keys: Keys,
    pub(crate) dev_login: bool,
    pub(crate) ticket_key: TicketKey,
    pub(crate) token_ttl: Duration,
    pub(crate) origins: Origins,
    pub(crate) profiles: Profiles,
    pub(crate) page_reads: PageReads,
    pub(crate) gateways: Gateways,
    pub(crate) sessions: Sessions,
    pub(crate) address_limiter: KeyedLimiter<IpAddr>,
    pub(crate) user_limiter: KeyedLimiter<UserId>,
    pub(crate) metrics: Metrics,
}

impl ApiContext {
    /// Returns the given app if it is served, or the first one.
    pub(crate) fn app_or_default(&self, app: Option<AppId>) -> Result<AppId, &'static str> {
        match app {
            None => Ok(self.app),
            Some(app) if self.apps.contains(&app) => Ok(app),
            Some(_) => Err(texts::server::APP_NOT_SERVED),
        }
    }

    /// Sends a command to `living`. Its refusals are passed on; no reply is an internal error.
    pub(crate) async fn command_living<C: Command>(
        &self,
        command: &C,
    ) -> Result<C::Reply, ApiError> {
        match self.bus.request(LIVING_GROUP, command).await {
            Ok(reply) => Ok(reply),
            Err(CommandError::Refused(refusal)) => {
                Err(ApiError::new(refusal.code, refusal.message))
            }
            Err(error) => {
                warn!(error = %chain(&error), "command to living failed");
                Err(ApiError::system())
            }
        }
    }

    /// Returns the profile of a logged-in user: the values of the token, else the stored ones.
    ///
    /// Stores the values of the token. An unavailable database costs a name, not the response.
    pub(crate) async fn profile(&self, identity: &Identity) -> Profile {
        let known = self.stored_profile(identity.user).await;
        if identity.nick_name.is_none() && identity.avatar.is_none() {
            return known;
        }
        let profile = Profile {
            nick_name: identity.nick_name.clone().unwrap_or(known.nick_name),
            avatar: identity.avatar.clone().unwrap_or(known.avatar),
        };
        if let Err(error) = self.profiles.store(identity.user, &profile).await {
            warn!(user = %identity.user, error = %chain(&error), "profile not stored");
        }
        profile
    }

    /// Returns a user's stored profile, or the default one.
    pub(crate) async fn stored_profile(&self, user: UserId) -> Profile {
        let mut found = match self.profiles.read(&[user]).await {
            Ok(found) => found,
            Err(error) => {
                warn!(error = %chain(&error), "profiles not read");
                Default::default()
            }
        };
        found.remove(&user).unwrap_or_else(|| Profile::default_for(user))
    }
}
