//! A bus over a nats-server of the test's own, and the ids of the tests.

use std::{future::Future, path::Path, time::Duration};

use qiyu_nats::{
    Bus, BusConfig, Profile,
    server::{ChildGuard, ChildServer, find},
};
use qiyu_schema::{AppId, UserId};

/// Time limit for everything that happens eventually.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// Starts a nats-server and connects to it. The server ends with the value.
pub(crate) async fn start_bus(directory: &Path) -> (Bus, ChildServer) {
    let binary = find(None, &mut |_| {}).unwrap();
    let server =
        ChildServer::start(&binary, directory, Profile::Default, &ChildGuard::Drop, &mut |_| {})
            .await;
    let server = server.unwrap();
    let config = BusConfig {
        url: server.url().clone(),
        name: "test".into(),
        replicas: 1,
        retain: Duration::from_secs(3600),
        ack_wait: Duration::from_secs(4),
        profile: Profile::Default,
    };
    let bus = Bus::connect(&config).await.unwrap();
    bus.provision().await.unwrap();
    (bus, server)
}

pub(crate) fn app() -> AppId {
    "10001".parse().unwrap()
}

pub(crate) fn user(id: u64) -> UserId {
    UserId::try_from(id).unwrap()
}

/// Waits until the condition holds, or fails after [`TIMEOUT`].
pub(crate) async fn eventually<F: Future<Output = bool>>(
    condition: &str,
    mut holds: impl FnMut() -> F,
) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(TIMEOUT, wait).await.is_ok(), "{condition}");
}
