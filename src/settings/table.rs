//! The table of settings: names, defaults, what they are for.

/// How much of a value may be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// All of it.
    Plain,
    /// All but user and password.
    Url,
    /// Nothing.
    Secret,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Its name, and without the dashes before it its flag: `ack-wait`.
    pub(crate) name: &'static str,
    /// None where absence has a meaning of its own, which `doc` tells.
    pub(crate) default: Option<&'static str>,
    pub(crate) doc: &'static str,
    pub(crate) shown: Shown,
}

/// Every setting there is.
#[rustfmt::skip] // a table reads as one
pub(crate) const SETTINGS: &[Setting] = &[
    given("http-listen", "127.0.0.1:8080",     "address of HTTP and the page"),
    given("ws-listen", "127.0.0.1:8086",       "address of the WebSocket gateway"),
    given("tcp-listen", "127.0.0.1:8085",      "address of the TCP gateway"),
    absent("advertise-ws",                     "host:port clients are sent to; absent: the listen address"),
    absent("advertise-tcp",                    "host:port clients are sent to; absent: the listen address"),
    absent("gateway-id",                       "lasting name of this gateway; absent: the host name, or for `up` one made and kept"),
    given("data-dir", "./data",                "directory of everything this process keeps"),
    masked("nats-url", Shown::Url,             "NATS to use, or several with commas; absent: `up` runs a server of its own"),
    absent("nats-server",                      "nats-server binary for `up`; absent: found on PATH or fetched"),
    masked("database-url", Shown::Url,         "sqlite:, mysql: or mariadb: URL; absent: SQLite in the data directory"),
    masked("redis-url", Shown::Url,            "Redis for the caches; absent: caches inside the process"),
    masked("jwt-secret", Shown::Secret,        "key of login tokens (HS256) and tickets, 32 bytes or more; absent: `up` makes one"),
    absent("jwks-file",                        "file of public keys for login tokens (RS256, ES256); absent: none"),
    masked("api-key", Shown::Secret,           "key of the /server/ calls; absent: they are off"),
    absent("dev-login",                        "whether anybody may log in as anybody; absent: true for `up`, else false"),
    given("replicas", "1",                     "copies of every stream: 1, 3 or 5"),
    given("streams", "make",                   "streams and buckets: make them, or wait until `qiyu provision` has"),
    given("drain-window", "10s",               "time over which a stopping gateway sends its clients away"),
    given("ack-wait", "4s",                    "time a client has to acknowledge a message before it is sent again"),
    given("max-sends", "2",                    "times a message is sent to a client before it is given up, 1 to 10"),
    given("idle-timeout", "60s",               "silence after which a connection is closed"),
    given("login-deadline", "10s",             "time a new connection has to log in"),
    given("token-ttl", "300s",                 "validity of a connection ticket"),
    given("max-frame", "65536",                "bytes of body a frame may have, 1024 to 131072"),
    given("send-rate", "20",                   "messages a second, per connection"),
    given("send-burst", "60",                  "messages at once, per connection"),
    absent("user-rate",                        "messages a second, per user and gateway, 0 for no limit; absent: five times send-rate"),
    absent("user-burst",                       "messages at once, per user; absent: five times send-burst"),
    given("address-rate", "0",                 "messages a second, per address and gateway, 0 for no limit"),
    given("address-burst", "1000",             "messages at once, per address"),
    given("room-rate", "500",                  "messages a second into one room, per gateway, 0 for no limit"),
    given("room-burst", "10000",               "messages at once into one room"),
    given("connect-rate", "50",                "connections a second, per address and per user"),
    given("connect-burst", "500",              "connections at once, per address and per user"),
    given("http-rate", "100",                  "HTTP requests a second, per address and per user"),
    given("http-burst", "500",                 "HTTP requests at once, per address and per user"),
    given("multi-device", "allow",             "a user's further connection: allow (up to 5), or replace"),
    given("anchor-grace", "10m",               "how long an anchor may be gone before the room closes by itself; 0s: for ever"),
    absent("words-file",                       "words that may not be said, one a line; absent: words.txt in the data directory"),
    masked("check-url", Shown::Url,            "webhook asked about every message; absent: none is"),
    given("check-timeout", "500ms",            "time the webhook has to answer"),
    given("check-silence", "accept",           "what no answer means: accept the message, or refuse it with 5000"),
    given("apps", "10001",                     "app ids served, separated by commas"),
    absent("origins",                          "origins of pages that may connect and call, with commas, or *; absent: the same host"),
    given("profile", "default",                "what a receipt survives: default (any process) or durable (a power cut too)"),
    absent("verify-every",                     "how often the role verify compares everything with the log; absent: 10m, and `up` does without the role"),
    given("retain", "72h",                     "how long the log is kept, at least 1h"),
    given("log", "info",                       "what is logged, as in info,qiyu_gateway=debug"),
    masked("otlp-url", Shown::Url,             "OTLP/HTTP URL traces go to, as http://host:4318/v1/traces; absent: no traces"),
    given("trace-ratio", "0.01",               "share of messages that are traced, 0 to 1"),
    given("log-format", "text",                "how a log line looks: text, or json for machines"),
];

const fn given(name: &'static str, default: &'static str, doc: &'static str) -> Setting {
    Setting { name, default: Some(default), doc, shown: Shown::Plain }
}

const fn absent(name: &'static str, doc: &'static str) -> Setting {
    Setting { name, default: None, doc, shown: Shown::Plain }
}

const fn masked(name: &'static str, shown: Shown, doc: &'static str) -> Setting {
    Setting { name, default: None, doc, shown }
}

impl Setting {
    /// The row called `name`, which must be one of the table's.
    pub(super) fn named(name: &str) -> &'static Self {
        // Tested: resolving anything asks for every row.
        SETTINGS.iter().find(|setting| setting.name == name).expect("a setting of the table")
    }

    /// Its variable: `QIYU_ACK_WAIT`.
    pub(crate) fn variable(&self) -> String {
        format!("QIYU_{}", self.name.to_uppercase().replace('-', "_"))
    }

    /// `value` as far as it may be printed.
    pub(super) fn masked(&self, value: &str) -> String {
        match self.shown {
            Shown::Plain => value.to_owned(),
            Shown::Secret if value.is_empty() => String::new(),
            Shown::Secret => "***".to_owned(),
            Shown::Url => mask_url(value),
        }
    }
}

/// The table as a document shows it.
pub(crate) fn markdown() -> String {
    let mut table = "| variable | default | what it is |\n|---|---|---|\n".to_owned();
    for setting in SETTINGS {
        let default = setting.default.map_or(String::new(), |default| format!("`{default}`"));
        let doc = setting.doc.replace('|', "\\|");
        table += &format!("| `{}` | {default} | {doc} |\n", setting.variable());
    }
    table
}

/// The known variable that takes the fewest edits to get to.
pub(super) fn nearest(variable: &str) -> String {
    let known = SETTINGS.iter().map(Setting::variable);
    known.min_by_key(|known| edits(variable, known)).unwrap_or_default()
}

/// Levenshtein's distance.
fn edits(from: &str, to: &str) -> usize {
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut above[0], i + 1);
        for (j, b) in to.bytes().enumerate() {
            let best = (diagonal + usize::from(a != b)).min(above[j] + 1).min(above[j + 1] + 1);
            diagonal = std::mem::replace(&mut above[j + 1], best);
        }
    }
    above[to.len()]
}

/// `scheme://***@rest` for each of several URLs.
fn mask_url(text: &str) -> String {
    let one = |url: &str| match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) => format!("{}***{}", &url[..scheme + 3], &url[at..]),
        (None, Some(at)) => format!("***{}", &url[at..]),
        _ => url.to_owned(),
    };
    text.split(',').map(one).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_the_one_that_was_meant() {
        assert_eq!(nearest("QIYU_ACK_WIAT"), "QIYU_ACK_WAIT");
        assert_eq!(edits("kitten", "sitting"), 3);
    }

    #[test]
    fn the_operating_guide_has_this_table() {
        let guide = include_str!("../../docs/OPERATING.md");
        let same = guide.contains(&markdown());
        assert!(same, "put what `cargo run -- settings` prints into docs/OPERATING.md");
    }

    #[test]
    fn a_url_is_shown_without_user_and_password() {
        assert_eq!(mask_url("mysql://ann:p@w@h/db"), "mysql://***@h/db");
        assert_eq!(mask_url("nats://h:1, nats://a:b@g:2"), "nats://h:1, nats://***@g:2");
    }
}
