//! Points in the log as operators name them: by a message, or by the clock.

use qiyu_schema::MsgId;
use time::{
    Duration, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset,
    format_description::{FormatItem, well_known::Rfc3339},
    macros::format_description,
};

/// The accepted forms of a point, for the error text.
const ACCEPTED: &str = "a msgId (digits) or a time: 2026-11-25T20:00:00Z, \"2026-11-25 20:00\" \
                        (UTC), 20:00:00 (UTC, the last time it was so late), \"10m ago\", -10m, \
                        -1h30m, @1764100800 (Unix seconds), now";

/// A point in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogPoint {
    /// At this message, inclusive.
    Msg(MsgId),
    /// At this instant of the server's clock, ms since 1970.
    At(u64),
}

impl LogPoint {
    /// Parses a point.
    ///
    /// # Errors
    ///
    /// Returns the accepted forms, as the end of a sentence that begins "… is not".
    pub(crate) fn parse(text: &str, now: OffsetDateTime) -> Result<Self, String> {
        let text = text.trim();
        if let Ok(msg_id) = text.parse::<MsgId>() {
            // Every id carries its log's number: another number is a typing error or a time.
            return if MsgId::at(msg_id.seq()) == msg_id {
                Ok(Self::Msg(msg_id))
            } else {
                Err(format!("a msgId of this log, nor anything else; {ACCEPTED} is accepted"))
            };
        }
        let at = instant(text, now).ok_or_else(|| ACCEPTED.to_owned())?;
        u64::try_from(at.unix_timestamp_nanos() / 1_000_000)
            .map(Self::At)
            .map_err(|_| "an instant after 1970".to_owned())
    }
}

fn instant(text: &str, now: OffsetDateTime) -> Option<OffsetDateTime> {
    if text == "now" {
        return Some(now);
    }
    let back = text.strip_prefix('-').or_else(|| text.strip_suffix("ago").map(str::trim_end));
    if let Some(back) = back {
        return now.checked_sub(span(back.trim())?);
    }
    if let Some(unix) = text.strip_prefix('@') {
        let seconds: f64 = unix.parse().ok().filter(|s: &f64| s.is_finite() && s.abs() < 1e11)?;
        return OffsetDateTime::from_unix_timestamp_nanos((seconds * 1e3) as i128 * 1_000_000).ok();
    }
    if let Some(time) = clock(text) {
        let today = PrimitiveDateTime::new(now.to_offset(UtcOffset::UTC).date(), time).assume_utc();
        return if today <= now { Some(today) } else { today.checked_sub(Duration::DAY) };
    }
    if let Ok(exact) = OffsetDateTime::parse(text, &Rfc3339) {
        return Some(exact);
    }
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00"));
    let date = time::Date::parse(date, format_description!("[year]-[month]-[day]")).ok()?;
    Some(PrimitiveDateTime::new(date, clock(time)?).assume_utc())
}

/// `20:00`, `20:00:00` or `20:00:00.123`.
fn clock(text: &str) -> Option<Time> {
    const MINUTES: &[FormatItem<'_>] = format_description!("[hour]:[minute]");
    const SECONDS: &[FormatItem<'_>] = format_description!("[hour]:[minute]:[second]");
    const PARTS: &[FormatItem<'_>] =
        format_description!("[hour]:[minute]:[second].[subsecond digits:1+]");
    [MINUTES, SECONDS, PARTS].iter().find_map(|format| Time::parse(text, format).ok())
}

/// `10m`, `1h30m`, `250ms`, `2d`.
fn span(text: &str) -> Option<Duration> {
    let (mut rest, mut whole) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = rest.split_at(digits);
        let end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, further) = unit.split_at(end);
        let millis = match unit.trim() {
            "ms" => 1,
            "s" | "sec" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        let millis = number.parse::<i64>().ok()?.checked_mul(millis)?;
        whole = whole.checked_add(Duration::milliseconds(millis))?;
        rest = further;
    }
    (!text.is_empty()).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_in_many_ways() {
        let now = OffsetDateTime::parse("2026-11-25T12:00:00Z", &Rfc3339).unwrap();
        let ms = |text: &str| {
            let at = OffsetDateTime::parse(text, &Rfc3339).unwrap();
            u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap()
        };
        for (text, expected) in [
            ("now", "2026-11-25T12:00:00Z"),
            ("10m ago", "2026-11-25T11:50:00Z"),
            ("-10m", "2026-11-25T11:50:00Z"),
            ("-1h30m", "2026-11-25T10:30:00Z"),
            ("2d ago", "2026-11-23T12:00:00Z"),
            ("250ms ago", "2026-11-25T11:59:59.75Z"),
            ("11:59", "2026-11-25T11:59:00Z"),
            ("11:59:58.5", "2026-11-25T11:59:58.5Z"),
            ("12:00:01", "2026-11-24T12:00:01Z"),
            ("2026-11-24", "2026-11-24T00:00:00Z"),
            ("2026-11-24 20:15", "2026-11-24T20:15:00Z"),
            ("2026-11-24T20:15:01Z", "2026-11-24T20:15:01Z"),
            ("2026-11-24T20:15:01+08:00", "2026-11-24T12:15:01Z"),
            ("@1764072000.5", "2025-11-25T12:00:00.5Z"),
        ] {
            assert_eq!(LogPoint::parse(text, now), Ok(LogPoint::At(ms(expected))), "{text}");
        }
        assert_eq!(LogPoint::parse("1793", now), Ok(LogPoint::Msg(MsgId::at(7))));
        for wrong in ["", "soon", "-", "ago", "10 ago", "25:00", "-10y", "1792", "2026-13-01", "@x"]
        {
            let refused = LogPoint::parse(wrong, now).unwrap_err();
            assert!(refused.contains("10m ago"), "{wrong}: {refused}");
        }
    }
}
