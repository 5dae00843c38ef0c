//! Instants as the tools print them, always in UTC.

use time::{OffsetDateTime, format_description::FormatItem, macros::format_description};

/// Formats an instant as `2026-11-25T20:00:00.123Z`.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    const FORMAT: &[FormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    format(unix_ms, FORMAT).unwrap_or_else(|| format!("@{unix_ms}ms"))
}

/// Formats an instant as `2026-11-25 20:00:00.123`.
pub(crate) fn date_time(unix_ms: u64) -> String {
    const FORMAT: &[FormatItem<'_>] =
        format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]");
    format(unix_ms, FORMAT).unwrap_or_else(|| format!("{unix_ms} ms"))
}

/// Formats the day of an instant as `2026-11-25`.
pub(crate) fn day(unix_ms: u64) -> String {
    const FORMAT: &[FormatItem<'_>] = format_description!("[year]-[month]-[day]");
    format(unix_ms, FORMAT).unwrap_or_else(|| format!("@{unix_ms}ms"))
}

/// Formats the time of day of an instant as `20:00:00.123`.
pub(crate) fn time_of_day(unix_ms: u64) -> String {
    let (second, millis) = (unix_ms / 1000 % 86_400, unix_ms % 1000);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{hour:02}:{minute:02}:{second:02}.{millis:03}")
}

/// Returns `None` for an instant outside the calendar.
fn format(unix_ms: u64, format: &[FormatItem<'_>]) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000);
    at.ok().and_then(|at| at.format(format).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_printed_in_utc_to_the_millisecond() {
        assert_eq!(rfc3339(1_764_072_000_500), "2025-11-25T12:00:00.500Z");
        assert_eq!(day(1_764_072_000_500), "2025-11-25");
        assert_eq!(time_of_day(1_764_072_000_500), "12:00:00.500");
        assert_eq!(date_time(1_700_000_000_123), "2023-11-14 22:13:20.123");
    }
}
