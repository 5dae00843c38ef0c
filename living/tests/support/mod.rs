//! The ids of the tests, and waiting for a condition.

use std::{future::Future, time::Duration};

use qiyu_schema::{AppId, UserId};

/// Time limit for everything that happens eventually.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

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
