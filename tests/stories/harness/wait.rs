//! Waiting for a condition, always with a deadline.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long anything that must happen may take, on a busy machine with two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How often a condition is looked at again. Nothing is ever assumed to be true after it.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Waits until `check` holds, or fails saying `what` did not come true.
pub(crate) async fn eventually(what: &str, within: Duration, mut check: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !check().await {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        sleep(LOOK_AGAIN).await;
    }
}
