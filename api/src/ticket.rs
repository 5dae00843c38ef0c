//! Issues a ticket for one gateway connection, and chooses the gateway.

use qiyu_nats::{chain, now_ms};
use qiyu_presence::GatewayView;
use qiyu_schema::{
    AppId, UserId,
    ticket::{Ticket, fresh_nonce},
};
use rand::seq::IndexedRandom;
use serde::Serialize;
use tracing::error;
use utoipa::ToSchema;

use crate::{context::ApiContext, identity::Identity, response::ApiError, texts};

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

/// Issues a ticket for one connection of a user, and returns a gateway to use it at.
pub(crate) async fn issue_ticket(
    context: &ApiContext,
    app: AppId,
    identity: &Identity,
) -> Result<ImConfig, ApiError> {
    let gateway = least_loaded(context.gateways.live());
    let gateway = gateway.ok_or_else(|| ApiError::new(501, texts::NO_GATEWAY))?;
    let profile = context.profile(identity).await;
    let ttl_ms = u64::try_from(context.token_ttl.as_millis()).unwrap_or(u64::MAX / 2);
    let ticket = Ticket {
        app,
        user: identity.user,
        nick_name: profile.nick_name,
        avatar: profile.avatar,
        expires_ms: now_ms() + ttl_ms,
        nonce: fresh_nonce(),
    };
    let token = context.ticket_key.sign(&ticket).map_err(|error| {
        error!(user = %identity.user, error = %chain(&error), "ticket not signed");
        ApiError::system()
    })?;
    Ok(ImConfig {
        token: token.expose().to_owned(),
        user_id: identity.user,
        expires_in: context.token_ttl.as_secs(),
        ws_im_server_address: gateway.ws,
        tcp_im_server_address: gateway.tcp,
    })
}

/// Returns a gateway that does not drain, with the fewest connections. Equal ones are chosen at
/// random: the counts are up to 2 s old, and a crowd must not go to one of them.
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
    fn the_least_loaded_gateway_is_chosen_and_equal_ones_share() {
        assert_eq!(least_loaded(vec![]), None);
        assert_eq!(least_loaded(vec![gateway("a", 0, true)]), None);
        let all = [gateway("a", 0, true), gateway("b", 2, false), gateway("c", 2, false)];
        let all = [&all[..], &[gateway("d", 3, false)]].concat();
        let chosen: HashSet<String> =
            (0..200).filter_map(|_| least_loaded(all.clone())).map(|gateway| gateway.ws).collect();
        assert_eq!(chosen, HashSet::from(["b".into(), "c".into()]));
    }
}
