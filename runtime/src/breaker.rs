//! A circuit breaker: after a failure, one caller per cooldown tries again for all.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Decides whether a server that may be unavailable is tried.
///
/// Closed, every call is allowed. A failure opens it for the cooldown. Afterwards one call is
/// allowed per probe timeout, until a call succeeds.
#[derive(Debug)]
pub struct CircuitBreaker {
    cooldown: Duration,
    probe_timeout: Duration,
    state: Mutex<BreakerState>,
}

#[derive(Clone, Copy, Debug)]
enum BreakerState {
    Closed,
    /// No call is allowed before this moment; the first one after it is a probe.
    OpenUntil(Instant),
}

impl CircuitBreaker {
    /// Makes a closed circuit breaker. After `probe_timeout` without an outcome of a probe,
    /// another call may probe.
    pub fn new(cooldown: Duration, probe_timeout: Duration) -> Self {
        Self { cooldown, probe_timeout, state: Mutex::new(BreakerState::Closed) }
    }

    /// Returns whether a call may be made at `now`. Its outcome is to be recorded.
    pub fn allows(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        match *state {
            BreakerState::Closed => true,
            BreakerState::OpenUntil(retry_at) if now < retry_at => false,
            BreakerState::OpenUntil(_) => {
                *state = BreakerState::OpenUntil(now + self.probe_timeout);
                true
            }
        }
    }

    /// Closes the circuit. Returns whether it was open.
    pub fn record_success(&self) -> bool {
        let before = std::mem::replace(&mut *self.state.lock(), BreakerState::Closed);
        matches!(before, BreakerState::OpenUntil(_))
    }

    /// Opens the circuit for the cooldown. Returns whether it was closed.
    pub fn record_failure(&self, now: Instant) -> bool {
        let open = BreakerState::OpenUntil(now + self.cooldown);
        let before = std::mem::replace(&mut *self.state.lock(), open);
        matches!(before, BreakerState::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_one_call_per_cooldown_is_allowed() {
        let cooldown = Duration::from_millis(20);
        let breaker = CircuitBreaker::new(cooldown, Duration::from_secs(60));
        let failed_at = Instant::now();
        assert!(breaker.allows(failed_at));
        assert!(breaker.record_failure(failed_at), "it was closed");
        assert!(!breaker.record_failure(failed_at), "it was open already");
        assert!(!breaker.allows(failed_at));
        let later = failed_at + cooldown;
        assert!(breaker.allows(later), "the probe");
        assert!(!breaker.allows(later), "only one");
        assert!(breaker.record_success());
        assert!(breaker.allows(later) && breaker.allows(later));
        assert!(!breaker.record_success(), "it was closed already");
    }
}
