//! What this process takes of its machine, as Linux counts it.

use std::{fmt, fs, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

/// CPU time a process has used, user and system, its threads' but not its children's.
///
/// `pid`: a number, or `self`. `None`: it is gone.
///
/// # Source
///
/// proc_pid_stat(5): after the name in parentheses, which may hold anything,
/// `utime` and `stime` are the 12th and 13th field, in clock ticks.
pub(crate) fn cpu_time(pid: &str) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11).map(str::parse::<u64>);
    let ticks = fields.next()?.ok()? + fields.next()?.ok()?;
    Some(Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64))
}

/// Memory this process holds, bytes.
///
/// # Source
///
/// proc_pid_statm(5): the second field is `resident`, in pages.
pub(crate) fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0).saturating_mul(page_size() as u64)
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Makes these numbers readable, under the names every exporter gives them.
pub(crate) fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(Process));
}

#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let cpu = ConstCounter::new(cpu_time("self").unwrap_or_default().as_secs_f64());
        let gauges = [
            ("process_resident_memory_bytes", "Memory held", resident_bytes()),
            ("process_open_fds", "Files and sockets open", open_files() as u64),
            (
                "process_max_fds",
                "Files and sockets that may be open",
                getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            ),
        ];
        let (name, help) = ("process_cpu_seconds", "CPU time used, user and system");
        cpu.encode(encoder.encode_descriptor(name, help, None, cpu.metric_type())?)?;
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value as f64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_what_it_takes() {
        let mut text = String::new();
        let mut registry = Registry::default();
        register(&mut registry);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("process_cpu_seconds_total "), "{text}");
        assert!(1 << 20 < resident_bytes() && 2 < open_files());
        assert_eq!(cpu_time("0"), None, "there is no such process");
    }
}
