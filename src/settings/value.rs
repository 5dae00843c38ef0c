//! Text to value, setting by setting. An error says what is accepted, as the
//! end of a sentence that begins "--flag=text is not".

use std::{
    fmt,
    net::{SocketAddr, ToSocketAddrs as _},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use qiyu_gateway::{MultiDevice, WebhookFailurePolicy};
use qiyu_nats::Profile;
use qiyu_schema::{AppId, Secret};
use tracing_subscriber::EnvFilter;

use super::{LogFormat, Streams};

pub(super) fn parsed<T: FromStr>(text: &str, accepted: &str) -> Result<T, String> {
    text.parse().map_err(|_| accepted.to_owned())
}

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let accepted = || "an address such as 127.0.0.1:8080, or port 0 for any free one".to_owned();
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    // A name such as localhost; IPv4 first, because that is what the defaults are.
    let found: Vec<SocketAddr> = text.to_socket_addrs().map_err(|_| accepted())?.collect();
    found.iter().find(|a| a.is_ipv4()).or(found.first()).copied().ok_or_else(accepted)
}

pub(super) fn host_and_port(text: &str) -> Result<String, String> {
    let good = |(host, port): (&str, &str)| {
        !host.is_empty() && !host.contains(['/', '@', ' ']) && port.parse::<u16>().is_ok()
    };
    if text.rsplit_once(':').is_some_and(good) {
        return Ok(text.to_owned());
    }
    Err("host:port, such as live.example.com:8086".to_owned())
}

pub(super) fn url(text: &str, schemes: &[&str]) -> Result<Secret, String> {
    let known = |url: &str| {
        let rest = |scheme: &&str| url.trim().strip_prefix(*scheme)?.strip_prefix(':');
        schemes.iter().filter_map(rest).any(|rest| !rest.trim_start_matches('/').is_empty())
    };
    if text.split(',').all(known) {
        return Ok(Secret::new(text));
    }
    Err(format!("a URL that begins with {}:", schemes.join(": or ")))
}

pub(super) fn jwt_secret(text: &str) -> Result<Secret, String> {
    if 32 <= text.len() {
        return Ok(Secret::new(text));
    }
    Err(format!("at least 32 bytes long, but {}", text.len()))
}

/// A length of time with its unit, if it is among the `accepted`.
pub(crate) fn duration(text: &str, accepted: RangeInclusive<Duration>) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let given = millis.and_then(|millis: u64| number.parse::<u64>().ok()?.checked_mul(millis));
    given.map(Duration::from_millis).filter(|given| accepted.contains(given)).ok_or_else(|| {
        let (least, most) = (accepted.start(), accepted.end());
        format!("a duration such as 250ms, 4s, 2m or 24h, from {least:?} to {most:?}")
    })
}

pub(super) fn number<T>(text: &str, accepted: RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    let number = text.parse().ok().filter(|number| accepted.contains(number));
    number.ok_or_else(|| format!("a whole number from {} to {}", accepted.start(), accepted.end()))
}

pub(super) fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && 0.0 < *rate);
    rate.ok_or_else(|| "a number over 0, such as 20 or 0.5".to_owned())
}

pub(super) fn rate_or_none(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && 0.0 <= *rate);
    rate.ok_or_else(|| "a number such as 20 or 0.5, or 0 for no limit".to_owned())
}

pub(super) fn replicas(text: &str) -> Result<usize, String> {
    let copies = text.parse().ok().filter(|copies| [1, 3, 5].contains(copies));
    copies.ok_or_else(|| "1, 3 or 5".to_owned())
}

pub(super) fn streams(text: &str) -> Result<Streams, String> {
    match text {
        "make" => Ok(Streams::Make),
        "wait" => Ok(Streams::Wait),
        _ => Err("make or wait".to_owned()),
    }
}

pub(super) fn multi_device(text: &str) -> Result<MultiDevice, String> {
    match text {
        "allow" => Ok(MultiDevice::Allow),
        "replace" => Ok(MultiDevice::Replace),
        _ => Err("allow or replace".to_owned()),
    }
}

pub(super) fn silence(text: &str) -> Result<WebhookFailurePolicy, String> {
    match text {
        "accept" => Ok(WebhookFailurePolicy::Accept),
        "refuse" => Ok(WebhookFailurePolicy::Refuse),
        _ => Err("accept or refuse".to_owned()),
    }
}

pub(super) fn ratio(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a number from 0 to 1".to_owned())
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("text or json".to_owned()),
    }
}

pub(super) fn profile(text: &str) -> Result<Profile, String> {
    match text {
        "default" => Ok(Profile::Default),
        "durable" => Ok(Profile::Durable),
        _ => Err("default or durable".to_owned()),
    }
}

pub(super) fn apps(text: &str) -> Result<Vec<AppId>, String> {
    let apps = text.split(',').map(|app| app.trim().parse()).collect::<Result<Vec<AppId>, _>>();
    apps.map_err(|_| "app ids (10000 or more) separated by commas".to_owned())
}

pub(super) fn origins(text: &str) -> Result<Vec<String>, String> {
    let origin = |text: &str| match text.split_once("://") {
        None => text == "*",
        Some((scheme, host)) => !scheme.is_empty() && !host.is_empty() && !host.contains('/'),
    };
    let origins: Vec<String> = text.split(',').map(|one| one.trim().to_owned()).collect();
    if origins.iter().all(|one| origin(one)) {
        return Ok(origins);
    }
    Err("origins such as https://live.example.com separated by commas, or *".to_owned())
}

pub(super) fn log(text: &str) -> Result<String, String> {
    let accepted = |_| "a filter such as info or warn,qiyu_gateway=debug".to_owned();
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(accepted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        let read = |text| duration(text, Duration::ZERO..=Duration::from_secs(90_000)).ok();
        assert_eq!(read("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(read("4s"), Some(Duration::from_secs(4)));
        assert_eq!(read("2m"), Some(Duration::from_secs(120)));
        assert_eq!(read("24h"), Some(Duration::from_secs(86_400)));
        for wrong in ["4", "s", "", "-4s", "4 s", "1.5s", "4d", "26h", "99999999999999999999s"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn addresses_are_host_and_port() {
        assert_eq!(address("127.0.0.1:0"), Ok(SocketAddr::from(([127, 0, 0, 1], 0))));
        assert_eq!(address("localhost:80"), Ok(SocketAddr::from(([127, 0, 0, 1], 80))));
        assert!(address("8080").is_err() && address("127.0.0.1").is_err());
        assert!(host_and_port("live.example.com:8086").is_ok());
        assert!(host_and_port("ws://live.example.com:8086").is_err());
        assert!(host_and_port("live.example.com").is_err());
    }

    #[test]
    fn urls_have_one_of_the_schemes() {
        let nats = |text| url(text, &["nats", "tls"]).is_ok();
        assert!(nats("nats://h:1") && nats("nats://a:b@h:1,tls://g:2"));
        assert!(!nats("h:4222") && !nats("nats://") && !nats("nats://h,http://g"));
        assert!(url("sqlite:data/x.db", &["sqlite"]).is_ok());
    }

    #[test]
    fn lists_are_separated_by_commas() {
        let two: Vec<AppId> = ["10001", "10002"].map(|app| app.parse().unwrap()).into();
        assert_eq!(apps("10001, 10002"), Ok(two));
        assert!(apps("9999").is_err() && apps("").is_err());
        assert!(origins("*").is_ok() && origins("https://a.example,http://b:80").is_ok());
        assert!(origins("a.example").is_err() && origins("https://a/").is_err());
    }
}
