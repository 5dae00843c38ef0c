//! A bus over a nats-server of the test's own.

use std::{path::Path, time::Duration};

use qiyu_nats::{
    Bus, BusConfig, Profile,
    server::{ChildGuard, ChildServer, find},
};

/// Starts a nats-server in `directory`, connects to it and makes the streams.
/// The server ends with the value.
pub async fn start_bus(directory: &Path) -> (Bus, ChildServer) {
    let binary = find(None, &mut |_| {}).expect("a nats-server");
    let (profile, guard) = (Profile::Default, ChildGuard::Drop);
    let server = ChildServer::start(&binary, directory, profile, &guard, &mut |_| {}).await;
    let server = server.expect("nats-server starts");
    let config = BusConfig {
        url: server.url().clone(),
        name: "test".into(),
        replicas: 1,
        retain: Duration::from_secs(3600),
        ack_wait: Duration::from_secs(4),
        profile,
    };
    let bus = Bus::connect(&config).await.expect("NATS answers");
    bus.provision().await.expect("streams and buckets are made");
    (bus, server)
}
