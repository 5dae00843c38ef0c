//! What came of a run, and whether it counts.

use std::{
    fmt,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{
    site::Site,
    tally::{Tally, Times},
};
use crate::process::cpu_time;

/// What was due is sent this late at most, or the load was not what it says. µs.
const LATE_MAX_US: u64 = 50_000;
/// The same work may take this many times as long at the worst moment.
const NOISE_MAX: f64 = 2.0;

/// What came of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// What was done, for people.
    pub(crate) load: String,
    pub(crate) took: Duration,
    /// Messages receipted and deliveries heard while it was measured.
    pub(crate) stored: u64,
    pub(crate) heard: u64,
    pub(crate) delivery: Times,
    pub(crate) receipt: Times,
    /// `None`: everything was sent when there was room, nothing was due.
    pub(crate) late: Option<Times>,
    /// `None`: not known.
    pub(crate) system_cpu: Option<Duration>,
    pub(crate) own_cpu: Duration,
    /// Over the whole run, warming up included.
    pub(crate) expected: u64,
    pub(crate) heard_in_all: u64,
    pub(crate) doubled: u64,
    pub(crate) reordered: u64,
    pub(crate) refused: u64,
    pub(crate) broken: u64,
    /// How many times longer than at best the machine took for the same work.
    pub(crate) noise: f64,
}

/// Whether a run counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    Failed,
    Invalid,
    Noisy,
}

impl Verdict {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Failed => 1,
            Self::Invalid => 2,
            Self::Noisy => 3,
        }
    }
}

impl Report {
    pub(crate) fn verdict(&self) -> Verdict {
        let wrong = self.doubled + self.reordered + self.refused + self.broken;
        if 0 < wrong || self.heard_in_all != self.expected {
            Verdict::Failed
        } else if self.heard == 0 || self.late.is_some_and(|late| LATE_MAX_US < late.p99) {
            Verdict::Invalid
        } else if NOISE_MAX < self.noise {
            Verdict::Noisy
        } else {
            Verdict::Passed
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64().max(f64::MIN_POSITIVE);
        let rate = |count: u64| count as f64 / seconds;
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / (self.heard.max(1) as f64);
        writeln!(f, "load         {}, {seconds:.1} s", self.load)?;
        writeln!(f, "stored       {} messages, {:.0}/s", self.stored, rate(self.stored))?;
        writeln!(f, "delivered    {} copies, {:.0}/s", self.heard, rate(self.heard))?;
        writeln!(f, "delivery     {}", self.delivery)?;
        writeln!(f, "receipt      {}", self.receipt)?;
        if let Some(late) = self.late {
            writeln!(f, "sent late    {late}")?;
        }
        match self.system_cpu {
            Some(cpu) => {
                let cores = cpu.as_secs_f64() / seconds;
                write!(f, "cpu          {:.1} µs a delivery ({cores:.2} cores)", each(cpu))?;
            }
            None => write!(f, "cpu          not known (--pids)")?,
        }
        let cores = self.own_cpu.as_secs_f64() / seconds;
        writeln!(f, "; the bench itself {:.1} µs ({cores:.2} cores)", each(self.own_cpu))?;
        // What was refused may have been stored all the same, and then it was heard.
        let lost = self.expected.saturating_sub(self.heard_in_all);
        writeln!(
            f,
            "content      {} expected, {lost} lost, {} doubled, {} out of order, {} refused, {} \
             connections broken",
            self.expected, self.doubled, self.reordered, self.refused, self.broken
        )?;
        let verdict = match self.verdict() {
            Verdict::Passed => "passed",
            Verdict::Failed => "FAILED",
            Verdict::Invalid => "INVALID: the load was not what it should have been",
            Verdict::Noisy => "NOISY: the machine was busy with something else",
        };
        write!(f, "verdict      {verdict} (noise {:.1})", self.noise)
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us as f64 / 1000.0;
        let (p50, p99, p999, max) = (ms(self.p50), ms(self.p99), ms(self.p999), ms(self.max));
        write!(f, "p50 {p50:.1} ms  p99 {p99:.1} ms  p99.9 {p999:.1} ms  max {max:.1} ms")
    }
}

/// A stretch of a run that is measured.
pub(crate) struct Stretch {
    since: Instant,
    stored: u64,
    heard: u64,
    system_cpu: Duration,
    own_cpu: Duration,
}

impl Stretch {
    /// From now on.
    pub(crate) fn begin(site: &Site, tally: &Tally) -> Self {
        tally.measure_anew();
        Self {
            since: Instant::now(),
            stored: tally.receipted.load(Ordering::Relaxed),
            heard: tally.heard.load(Ordering::Relaxed),
            system_cpu: site.cpu(),
            own_cpu: own_cpu(),
        }
    }

    /// Until now. What concerns the whole run is filled in later.
    pub(crate) fn end(self, site: &Site, tally: &Tally) -> Report {
        Report {
            took: self.since.elapsed(),
            stored: tally.receipted.load(Ordering::Relaxed) - self.stored,
            heard: tally.heard.load(Ordering::Relaxed) - self.heard,
            delivery: tally.delivery(),
            receipt: tally.receipt(),
            system_cpu: site.knows_cpu().then(|| site.cpu().saturating_sub(self.system_cpu)),
            own_cpu: own_cpu().saturating_sub(self.own_cpu),
            ..Report::default()
        }
    }
}

impl Report {
    /// With what the whole run came to.
    pub(crate) fn with_content(self, tally: &Tally, expected: u64) -> Self {
        let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        Self {
            expected,
            heard_in_all: read(&tally.heard),
            doubled: read(&tally.doubled),
            reordered: read(&tally.reordered),
            refused: read(&tally.refused),
            broken: read(&tally.broken),
            ..self
        }
    }
}

fn own_cpu() -> Duration {
    cpu_time("self").unwrap_or_default()
}

/// How many times longer than at best the same work takes at the moment.
pub(crate) fn noise() -> f64 {
    let work = || {
        let began = Instant::now();
        let sum = (0..5_000_000_u64).fold(7_u64, |sum, n| sum.rotate_left(5) ^ n);
        std::hint::black_box(sum);
        began.elapsed().as_secs_f64()
    };
    let times: Vec<f64> = (0..7).map(|_| work()).collect();
    let best = times.iter().copied().fold(f64::INFINITY, f64::min);
    // The worst single one is chance; the third worst is what the run met.
    let mut sorted = times;
    sorted.sort_by(f64::total_cmp);
    sorted[4] / best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_count_outweighs_everything() {
        let fine =
            Report { expected: 10, heard_in_all: 10, heard: 8, noise: 1.1, ..Report::default() };
        assert_eq!(fine.verdict(), Verdict::Passed);
        let late = Some(Times { p99: LATE_MAX_US + 1, ..Times::default() });
        let late = Report { late, ..fine };
        assert_eq!(late.verdict(), Verdict::Invalid);
        let lost = Report { heard_in_all: 9, ..late };
        assert_eq!(lost.verdict(), Verdict::Failed);
        let noisy = Report { heard_in_all: 10, late: None, noise: 3.0, ..lost };
        assert_eq!((noisy.verdict(), noisy.verdict().code()), (Verdict::Noisy, 3));
    }
}
