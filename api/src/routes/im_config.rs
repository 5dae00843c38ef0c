//! `/im/getImConfig`: a ticket for one connection, and where to use it.

use std::sync::Arc;

use axum::extract::State;
use qiyu_nats::now_ms;
use qiyu_presence::GatewayView;
use qiyu_schema::{
    AppId, UserId,
    ticket::{Ticket, fresh_nonce},
};
use rand::seq::IndexedRandom;
use serde::Serialize;
use tracing::error;
use utoipa::ToSchema;

use crate::{
    answer::{Answer, Body, Refused},
    edge::Edge,
    identity::{Identity, LoggedIn},
};

/// The way to a gateway.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImConfig {
    /// Good for one connection.
    token: String,
    #[schema(value_type = u64)]
    user_id: UserId,
    /// In seconds.
    expires_in: u64,
    ws_im_server_address: String,
    tcp_im_server_address: String,
}

/// Answers whoever is logged in, while a gateway lives.
#[utoipa::path(post, path = "/im/getImConfig", tag = "im", security(("login" = [])), responses(
    (status = 200, description = "code 200, or 401, or 501 when no gateway lives", body = Body<ImConfig>),
))]
pub(crate) async fn im_config(
    State(edge): State<Arc<Edge>>,
    LoggedIn(who): LoggedIn,
) -> Result<Answer<ImConfig>, Refused> {
    ticket_for(&edge, edge.app, &who).await.map(Answer)
}

/// A ticket for one connection of a user, and a gateway to use it at.
pub(crate) async fn ticket_for(
    edge: &Edge,
    app: AppId,
    who: &Identity,
) -> Result<ImConfig, Refused> {
    let gateway = least_loaded(edge.gateways.live());
    let gateway = gateway.ok_or_else(|| Refused::new(501, "暂无可用的IM服务器"))?;
    let profile = edge.profile(who).await;
    let ticket = Ticket {
        app,
        user: who.user,
        nick_name: profile.nick_name,
        avatar: profile.avatar,
        expires_ms: now_ms() + u64::try_from(edge.token_ttl.as_millis()).unwrap_or(u64::MAX / 2),
        nonce: fresh_nonce(),
    };
    let token = edge.ticket_key.sign(&ticket).map_err(|error| {
        error!(user = %who.user, error = &error as &dyn std::error::Error, "ticket not signed");
        Refused::system()
    })?;
    Ok(ImConfig {
        token: token.expose().to_owned(),
        user_id: who.user,
        expires_in: edge.token_ttl.as_secs(),
        ws_im_server_address: gateway.ws,
        tcp_im_server_address: gateway.tcp,
    })
}

/// One that stays, with the fewest connections. Which of equals is left to
/// chance: the counts are up to 2 s old, and a crowd must not run to one of them.
fn least_loaded(mut gateways: Vec<GatewayView>) -> Option<GatewayView> {
    gateways.retain(|gateway| !gateway.draining);
    let fewest = gateways.iter().map(|gateway| gateway.connections).min()?;
    gateways.retain(|gateway| gateway.connections == fewest);
    gateways.choose(&mut rand::rng()).cloned()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use qiyu_schema::Incarnation;

    use super::*;

    fn gateway(id: &str, connections: u64, draining: bool) -> GatewayView {
        let incarnation = Incarnation { id: id.parse().unwrap(), epoch: 1 };
        GatewayView { incarnation, ws: id.into(), tcp: id.into(), connections, draining }
    }

    #[test]
    fn the_emptiest_that_stays_is_chosen_and_equals_share() {
        assert_eq!(least_loaded(vec![]), None);
        assert_eq!(least_loaded(vec![gateway("a", 0, true)]), None);
        let all = [gateway("a", 0, true), gateway("b", 2, false), gateway("c", 2, false)];
        let all = [&all[..], &[gateway("d", 3, false)]].concat();
        let chosen: HashSet<String> =
            (0..200).filter_map(|_| least_loaded(all.clone())).map(|gateway| gateway.ws).collect();
        assert_eq!(chosen, HashSet::from(["b".into(), "c".into()]));
    }
}
