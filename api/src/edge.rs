//! What a request passes before its route: the rate of its address, the check
//! that no foreign page sent it; and what every answer gets: headers, a count,
//! and words instead of a panic.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use qiyu_nats::{Bus, brake::Brakes, service::CommandError};
use qiyu_presence::{Gateways, Sessions};
use qiyu_schema::{
    AppId, Secret, UserId,
    command::{Command, LIVING},
    ticket::TicketKey,
};
use tracing::{error, warn};

use crate::{
    answer::Refused,
    identity::{Identity, Keys, cookie},
    metrics::{Metrics, Route},
    origins::Origins,
    profile::{Profile, Profiles},
    rate::{Rates, neighbourhood},
    reads::Reads,
    routes::LOGIN,
    server::{Failed, PREFIX, has_key},
};

/// Everything the routes work on.
pub(crate) struct Edge {
    pub(crate) bus: Bus,
    /// The contract's routes name no app: they mean this one.
    pub(crate) app: AppId,
    /// Every app, for those who name one.
    pub(crate) apps: Vec<AppId>,
    /// For integrators. `None`: their routes are off.
    pub(crate) api_key: Option<Secret>,
    pub(crate) brakes: Brakes,
    pub(crate) keys: Keys,
    pub(crate) dev_login: bool,
    pub(crate) ticket_key: TicketKey,
    pub(crate) token_ttl: Duration,
    pub(crate) origins: Origins,
    pub(crate) profiles: Profiles,
    pub(crate) reads: Reads,
    pub(crate) gateways: Gateways,
    pub(crate) sessions: Sessions,
    pub(crate) address_rates: Rates<IpAddr>,
    pub(crate) user_rates: Rates<UserId>,
    pub(crate) metrics: Metrics,
}

impl Edge {
    /// The app somebody names, or the one the contract's routes mean.
    pub(crate) fn app_of(&self, named: Option<AppId>) -> Result<AppId, &'static str> {
        match named {
            None => Ok(self.app),
            Some(app) if self.apps.contains(&app) => Ok(app),
            Some(_) => Err("this app is not served here (QIYU_APPS)"),
        }
    }

    /// Asks the rooms. What they refuse is passed on; that nobody answers is our fault.
    pub(crate) async fn living<C: Command>(&self, command: &C) -> Result<C::Reply, Refused> {
        match self.bus.ask(LIVING, command).await {
            Ok(reply) => Ok(reply),
            Err(CommandError::Refused(refusal)) => Err(Refused::new(refusal.code, refusal.message)),
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "rooms do not answer");
                Err(Refused::system())
            }
        }
    }

    /// How somebody who is logged in is shown: what the token says, else what is
    /// kept. Keeps what the token says. A database that is away costs a name, not the answer.
    pub(crate) async fn profile(&self, who: &Identity) -> Profile {
        let known = self.known(&[who.user]).await.pop();
        let known = known.unwrap_or_else(|| Profile::unknown(who.user));
        if who.nick_name.is_none() && who.avatar.is_none() {
            return known;
        }
        let profile = Profile {
            nick_name: who.nick_name.clone().unwrap_or(known.nick_name),
            avatar: who.avatar.clone().unwrap_or(known.avatar),
        };
        if let Err(error) = self.profiles.keep(who.user, &profile).await {
            let error = &error as &dyn std::error::Error;
            warn!(user = %who.user, error, "profile not kept");
        }
        profile
    }

    /// The profiles of `users`, in their order, read at once.
    pub(crate) async fn known(&self, users: &[UserId]) -> Vec<Profile> {
        let mut found = match self.profiles.of(users).await {
            Ok(found) => found,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "profiles not read");
                Default::default()
            }
        };
        let profile = |user: &UserId| found.remove(user).unwrap_or_else(|| Profile::unknown(*user));
        users.iter().map(profile).collect()
    }
}

/// Around every route.
pub(crate) async fn guard(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let (route, started) = (Route::of(request.uri().path()), Instant::now());
    let by_status = request.uri().path().starts_with(PREFIX);
    // Integrators read the status, everybody else the code in the body.
    let refuse = |refused: Refused| match by_status {
        true => Failed::from(refused).into_response(),
        false => refused.into_response(),
    };
    let mut response = match admit(&edge, &request, started) {
        Ok(()) => {
            let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
            answered.unwrap_or_else(|_| {
                error!(route = route.as_str(), "a route panicked");
                refuse(Refused::system())
            })
        }
        Err(refused) => refuse(refused),
    };
    response
        .headers_mut()
        .extend(PROTECTION.map(|(name, value)| (name, HeaderValue::from_static(value))));
    edge.metrics.answered(route, &response, started.elapsed());
    response
}

/// On every answer. The page loads nothing foreign but people's pictures, and
/// speaks to gateways on other hosts and ports.
pub(crate) const PROTECTION: [(HeaderName, &str); 3] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' http: https: data:; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
];

fn admit(edge: &Edge, request: &Request, now: Instant) -> Result<(), Refused> {
    // Served without addresses, everybody is one neighbour.
    let address = request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(address)| address.ip());
    // An integrator is one address with everybody behind it, and has shown its key.
    let keyed = request.uri().path().starts_with(PREFIX)
        && has_key(request.headers(), edge.api_key.as_ref());
    if !keyed && !edge.address_rates.admits(neighbourhood(address), now) {
        return Err(Refused::too_fast());
    }
    let login = request.uri().path() == LOGIN; // it sets the cookie
    let carries = login || cookie(request.headers()).is_some();
    if request.method() == Method::POST && carries && is_foreign(request.headers(), &edge.origins) {
        return Err(Refused::new(403, "不允许跨站请求"));
    }
    Ok(())
}

/// Whether a browser says that a page sent this which is neither of this site nor
/// welcome. A request without such headers is no browser's, and brings its cookie
/// on purpose.
fn is_foreign(headers: &HeaderMap, welcome: &Origins) -> bool {
    if headers.get(header::ORIGIN).is_some_and(|origin| welcome.trusts(origin)) {
        return false;
    }
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    if text(HeaderName::from_static("sec-fetch-site")) == Some("cross-site") {
        return true;
    }
    let Some(origin) = text(header::ORIGIN) else { return false };
    let origin = origin.split_once("://").map(|(_, authority)| host(authority));
    origin.is_none() || origin != text(header::HOST).map(host)
}

/// The name in `name:port`. Ports do not tell sites apart: cookies do not either.
fn host(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_page_is_recognised() {
        let table: [(&[(&'static str, &'static str)], bool); 11] = [
            (&[("host", "a:8080")], false),
            (&[("host", "a:8080"), ("origin", "http://a:8080")], false),
            (&[("host", "a"), ("origin", "https://a:8443")], false),
            (&[("host", "[::1]:8080"), ("origin", "http://[::1]:8080")], false),
            (&[("host", "[::1]:8080"), ("origin", "http://[::2]:8080")], true),
            (&[("host", "a"), ("origin", "http://b")], true),
            (&[("host", "a"), ("origin", "http://a.b")], true),
            (&[("host", "a"), ("origin", "null")], true),
            (&[("origin", "http://a")], true),
            (&[("host", "a"), ("sec-fetch-site", "cross-site")], true),
            (&[("host", "a"), ("sec-fetch-site", "same-origin"), ("origin", "http://a")], false),
        ];
        for (headers, foreign) in table {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| {
                    (HeaderName::from_static(name), HeaderValue::from_static(value))
                })
                .collect();
            assert_eq!(is_foreign(&headers, &Origins::None), foreign, "{headers:?}");
        }
    }
}
