//! The speed of a replay.

use std::time::Duration;

use tokio::time::Instant;

/// A multiple of the original speed, or unlimited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Speed {
    Times(f64),
    Max,
}

impl Speed {
    /// Parses `1x`, `10x`, `0.5x`, `10` or `max`.
    ///
    /// # Errors
    ///
    /// Returns the accepted forms.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let times = text.strip_suffix('x').unwrap_or(text).parse::<f64>().ok();
        times
            .filter(|times| (0.001..=1e6).contains(times))
            .map(Self::Times)
            .ok_or_else(|| "a speed such as 1x, 10x, 0.5x or max".to_owned())
    }
}

/// Computes the time at which each entry is due, counted from the first.
#[derive(Debug)]
pub(crate) struct Pace {
    speed: Speed,
    began: Option<(Instant, u64)>,
}

impl Pace {
    pub(crate) fn new(speed: Speed) -> Self {
        Self { speed, began: None }
    }

    /// Returns the time at which an entry of `at_ms` is due. `None`: at once.
    pub(crate) fn due(&mut self, at_ms: u64) -> Option<Instant> {
        let Speed::Times(times) = self.speed else { return None };
        let (began, first_ms) = *self.began.get_or_insert((Instant::now(), at_ms));
        let since = Duration::from_millis(at_ms.saturating_sub(first_ms));
        Some(began + since.div_f64(times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_multiples() {
        assert_eq!(Speed::parse("1x"), Ok(Speed::Times(1.0)));
        assert_eq!(Speed::parse("10"), Ok(Speed::Times(10.0)));
        assert_eq!(Speed::parse("max"), Ok(Speed::Max));
        for wrong in ["", "x", "0x", "-1x", "NaN", "fast", "1e9x"] {
            assert!(Speed::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn gaps_are_kept_in_proportion() {
        let mut pace = Pace::new(Speed::Times(10.0));
        let first = pace.due(1_000).unwrap();
        assert_eq!(pace.due(6_000).unwrap() - first, Duration::from_millis(500));
        assert_eq!(pace.due(900).unwrap(), first, "clocks may step back");
        assert_eq!(Pace::new(Speed::Max).due(1), None);
    }
}
