//! Every setting of qiyu: one table, read from flags and `QIYU_` variables.
//!
//! A flag wins over its variable; an empty variable counts as not given. All
//! mistakes are found before any is reported, a misspelt name included.

mod table;
mod value;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use qiyu_explain::access::LogAccessConfig;
use qiyu_gateway::{MultiDevice, WebhookFailurePolicy};
use qiyu_nats::Profile;
use qiyu_schema::{AppId, GatewayId, Secret};

pub(crate) use self::{
    table::{SETTINGS, markdown},
    value::duration,
};
use self::{
    table::{Setting, nearest},
    value::{
        address, apps, host_and_port, jwt_secret, log, log_format, multi_device, number, origins,
        parsed, path, profile, rate, rate_or_none, ratio, replicas, silence, streams, url,
    },
};
use crate::run::Role;

/// Connections a user may have at once (`presence` holds them to it).
const DEVICES: u32 = 5;
const DEVICES_RATE: f64 = 5.0;
/// Between two verifications: each reads the whole log.
const VERIFY_EVERY_MINUTES: u64 = 10;

/// What the settings are for: it decides a default and what must be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Everything in one process.
    Up,
    /// Some roles of a larger system.
    Run(Vec<Role>),
    /// A command that looks at a system or at nothing.
    Tool,
}

/// Who makes streams and buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Streams {
    /// This process, when it starts.
    Make,
    /// Somebody who may; this process waits until they are there.
    Wait,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Every setting, read and checked.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) http_listen: SocketAddr,
    pub(crate) ws_listen: SocketAddr,
    pub(crate) tcp_listen: SocketAddr,
    /// None: the address listened on.
    pub(crate) advertise_ws: Option<String>,
    /// None: the address listened on.
    pub(crate) advertise_tcp: Option<String>,
    /// None: the host name, or one kept in the data directory.
    pub(crate) gateway_id: Option<GatewayId>,
    pub(crate) data_dir: PathBuf,
    /// None: a child nats-server.
    pub(crate) nats_url: Option<Secret>,
    /// None: found or fetched.
    pub(crate) nats_server: Option<PathBuf>,
    pub(crate) database_url: Secret,
    /// None: caches inside the process.
    pub(crate) redis_url: Option<Secret>,
    /// None: `up` makes and keeps one; other commands do without.
    pub(crate) jwt_secret: Option<Secret>,
    /// None: no public keys.
    pub(crate) jwks_file: Option<PathBuf>,
    /// None: the server calls are off.
    pub(crate) api_key: Option<Secret>,
    pub(crate) dev_login: bool,
    pub(crate) replicas: usize,
    pub(crate) streams: Streams,
    pub(crate) drain_window: Duration,
    pub(crate) ack_wait: Duration,
    pub(crate) max_sends: u32,
    pub(crate) idle_timeout: Duration,
    pub(crate) login_deadline: Duration,
    pub(crate) token_ttl: Duration,
    /// Bytes of body.
    pub(crate) max_frame: usize,
    /// A second, as the other rates.
    pub(crate) send_rate: f64,
    pub(crate) send_burst: u32,
    /// 0: no limit, as for the next two.
    pub(crate) user_rate: f64,
    pub(crate) user_burst: u32,
    pub(crate) address_rate: f64,
    pub(crate) address_burst: u32,
    pub(crate) room_rate: f64,
    pub(crate) room_burst: u32,
    pub(crate) connect_rate: f64,
    pub(crate) connect_burst: u32,
    pub(crate) http_rate: f64,
    pub(crate) http_burst: u32,
    pub(crate) multi_device: MultiDevice,
    /// None: an anchor may be gone for ever.
    pub(crate) anchor_grace: Option<Duration>,
    pub(crate) words_file: PathBuf,
    /// None: no webhook is asked.
    pub(crate) check_url: Option<Secret>,
    pub(crate) check_timeout: Duration,
    pub(crate) check_silence: WebhookFailurePolicy,
    /// Never empty.
    pub(crate) apps: Vec<AppId>,
    /// Empty: only the same host.
    pub(crate) origins: Vec<String>,
    pub(crate) profile: Profile,
    pub(crate) retain: Duration,
    /// None: only when somebody asks. Never None for the role that does it.
    pub(crate) verify_every: Option<Duration>,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
    /// None: no traces.
    pub(crate) otlp_url: Option<Secret>,
    pub(crate) trace_ratio: f64,
    resolved: BTreeMap<&'static str, String>,
}

/// Everything that is wrong with the settings, at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Mistakes(Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let things = if self.0.len() == 1 { "setting is" } else { "settings are" };
        write!(f, "{} {things} wrong:", self.0.len())?;
        self.0.iter().zip(1..).try_for_each(|(mistake, n)| write!(f, "\n  {n}. {mistake}"))
    }
}

/// The resolved settings as `QIYU_X=value` lines, secrets as `***`; nothing
/// after the `=` of what is absent.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SETTINGS.iter().try_for_each(|setting| {
            let value = self.resolved.get(setting.name).map_or("", String::as_str);
            writeln!(f, "{}={}", setting.variable(), setting.masked(value))
        })
    }
}

impl Settings {
    /// Reads every setting. `flag` gives a flag's value by its name without dashes before it;
    /// of `env` only the `QIYU_` variables are looked at.
    ///
    /// # Errors
    ///
    /// [`Mistakes`] lists all of them, and shows no secret.
    pub(crate) fn resolve(
        purpose: &Purpose,
        flag: &dyn Fn(&str) -> Option<String>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Mistakes> {
        let mut reader = Reader::new(flag, env);
        let settings = reader.settings(purpose);
        reader.check(purpose, &settings);
        if reader.mistakes.is_empty() {
            return Ok(Self { resolved: reader.resolved, ..settings });
        }
        Err(Mistakes(reader.mistakes))
    }
}

impl Settings {
    /// Settings of the operators' tools.
    pub(crate) fn explain(&self) -> qiyu_explain::Config {
        qiyu_explain::Config {
            log: LogAccessConfig {
                nats_url: self.nats_url.clone(),
                data_dir: self.data_dir.clone(),
                nats_server: self.nats_server.clone(),
                replicas: self.replicas,
                retain: self.retain,
                ack_wait: self.ack_wait,
                profile: self.profile,
            },
            apps: self.apps.clone(),
            http_listen: self.http_listen,
            ws_listen: self.ws_listen,
            origins: self.origins.clone(),
            database_url: self.database_url.clone(),
            masked: self.to_string().lines().map(str::to_owned).collect(),
        }
    }
}

/// Reads one setting after the other and remembers what was wrong.
struct Reader<'a> {
    flag: &'a dyn Fn(&str) -> Option<String>,
    env: BTreeMap<&'static str, String>,
    resolved: BTreeMap<&'static str, String>,
    mistakes: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(
        flag: &'a dyn Fn(&str) -> Option<String>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let mut reader =
            Self { flag, env: BTreeMap::new(), resolved: BTreeMap::new(), mistakes: Vec::new() };
        for (variable, value) in env {
            let Some(variable) = variable.to_str().filter(|name| name.starts_with("QIYU_")) else {
                continue;
            };
            let Some(setting) = SETTINGS.iter().find(|setting| setting.variable() == variable)
            else {
                let nearest = nearest(variable);
                let mistake = format!("{variable} is not a setting; did you mean {nearest}?");
                reader.mistakes.push(mistake);
                continue;
            };
            match value.into_string() {
                Ok(value) if value.is_empty() => {}
                Ok(value) => drop(reader.env.insert(setting.name, value)),
                Err(_) => reader.mistakes.push(format!("{variable} is not UTF-8 text")),
            }
        }
        reader
    }

    /// The value of a setting that may be absent; none too when it is wrong.
    fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let setting = Setting::named(name);
        let flag = (self.flag)(name).map(|value| (format!("--{}", setting.name), value));
        let (source, value) = flag
            .or_else(|| Some((setting.variable(), self.env.get(name)?.clone())))
            .filter(|(_, value)| !value.is_empty())?;
        match parse(&value) {
            Ok(parsed) => {
                self.resolved.insert(name, value);
                Some(parsed)
            }
            Err(accepted) => {
                let shown = setting.masked(&value);
                self.mistakes.push(format!("{source}={shown} is not {accepted}"));
                None
            }
        }
    }

    /// The value of a setting that has a default, which stands in for a wrong one.
    fn required<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        if let Some(given) = self.optional(name, &parse) {
            return given;
        }
        let default = Setting::named(name).default.unwrap_or_default();
        self.resolved.entry(name).or_insert_with(|| default.to_owned());
        // Tested for every row: the table itself may not be wrong.
        parse(default).unwrap_or_else(|accepted| panic!("default of {name} is not {accepted}"))
    }

    fn settings(&mut self, purpose: &Purpose) -> Settings {
        const MINUTE: Duration = Duration::from_secs(60);
        const HOUR: Duration = Duration::from_secs(3600);
        let brief = Duration::from_millis(100)..=HOUR;
        let data_dir = self.required("data-dir", path);
        let send_rate = self.required("send-rate", rate);
        let send_burst = self.required("send-burst", |text| number(text, 1..=u32::MAX));
        Settings {
            http_listen: self.required("http-listen", address),
            ws_listen: self.required("ws-listen", address),
            tcp_listen: self.required("tcp-listen", address),
            advertise_ws: self.optional("advertise-ws", host_and_port),
            advertise_tcp: self.optional("advertise-tcp", host_and_port),
            gateway_id: self.optional("gateway-id", |text| {
                parsed(text, "a gateway id (1 to 64 of A-Z a-z 0-9 _ -)")
            }),
            nats_url: self.optional("nats-url", |text| url(text, &["nats", "tls"])),
            nats_server: self.optional("nats-server", path),
            database_url: self.database_url(&data_dir),
            redis_url: self.optional("redis-url", |text| url(text, &["redis", "rediss"])),
            jwt_secret: self.optional("jwt-secret", jwt_secret),
            jwks_file: self.optional("jwks-file", path),
            api_key: self.optional("api-key", |text| Ok(Secret::new(text))),
            dev_login: self.dev_login(purpose),
            replicas: self.required("replicas", replicas),
            streams: self.required("streams", streams),
            drain_window: self.required("drain-window", |t| duration(t, Duration::ZERO..=HOUR)),
            ack_wait: self.required("ack-wait", |text| duration(text, brief.clone())),
            max_sends: self.required("max-sends", |text| number(text, 1..=10)),
            idle_timeout: self.required("idle-timeout", |text| duration(text, brief.clone())),
            login_deadline: self.required("login-deadline", |text| duration(text, brief.clone())),
            token_ttl: self
                .required("token-ttl", |t| duration(t, Duration::from_secs(1)..=24 * HOUR)),
            max_frame: self.required("max-frame", |text| number(text, 1024..=131_072)),
            send_rate,
            send_burst,
            user_rate: self.user_share("user-rate", rate_or_none, send_rate * DEVICES_RATE),
            user_burst: self.user_share(
                "user-burst",
                |text| number(text, 1..=u32::MAX),
                send_burst.saturating_mul(DEVICES),
            ),
            address_rate: self.required("address-rate", rate_or_none),
            address_burst: self.required("address-burst", |text| number(text, 1..=u32::MAX)),
            room_rate: self.required("room-rate", rate_or_none),
            room_burst: self.required("room-burst", |text| number(text, 1..=u32::MAX)),
            connect_rate: self.required("connect-rate", rate),
            connect_burst: self.required("connect-burst", |text| number(text, 1..=u32::MAX)),
            http_rate: self.required("http-rate", rate),
            http_burst: self.required("http-burst", |text| number(text, 1..=u32::MAX)),
            multi_device: self.required("multi-device", multi_device),
            apps: self.required("apps", apps),
            origins: self.optional("origins", origins).unwrap_or_default(),
            profile: self.required("profile", profile),
            anchor_grace: Some(
                self.required("anchor-grace", |text| duration(text, Duration::ZERO..=24 * HOUR)),
            )
            .filter(|grace| !grace.is_zero()),
            words_file: self.words_file(&data_dir),
            check_url: self.optional("check-url", |text| url(text, &["http", "https"])),
            check_timeout: self.required("check-timeout", |text| {
                duration(text, Duration::from_millis(10)..=Duration::from_secs(5))
            }),
            check_silence: self.required("check-silence", silence),
            verify_every: self.verify_every(purpose),
            retain: self.required("retain", |text| duration(text, 60 * MINUTE..=24 * 366 * HOUR)),
            log: self.required("log", log),
            otlp_url: self.optional("otlp-url", |text| url(text, &["http", "https"])),
            trace_ratio: self.required("trace-ratio", ratio),
            log_format: self.required("log-format", log_format),
            data_dir,
            resolved: BTreeMap::new(),
        }
    }

    /// What a user may do; absent: as much as all their connections together.
    fn user_share<T: fmt::Display>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
        of_all: T,
    ) -> T {
        let share = self.optional(name, parse).unwrap_or(of_all);
        self.resolved.insert(name, share.to_string());
        share
    }

    fn words_file(&mut self, data_dir: &Path) -> PathBuf {
        self.optional("words-file", path).unwrap_or_else(|| data_dir.join("words.txt"))
    }

    fn database_url(&mut self, data_dir: &Path) -> Secret {
        if let Some(given) =
            self.optional("database-url", |text| url(text, &["sqlite", "mysql", "mariadb"]))
        {
            return given;
        }
        // sqlx decodes percents and cuts at the question mark.
        let path = data_dir.join("qiyu.db").to_string_lossy().replace('%', "%25");
        let url = format!("sqlite://{}?mode=rwc", path.replace('?', "%3F").replace('#', "%23"));
        self.resolved.insert("database-url", url.clone());
        Secret::new(url)
    }

    fn dev_login(&mut self, purpose: &Purpose) -> bool {
        let on = self
            .optional("dev-login", |text| parsed(text, "true or false"))
            .unwrap_or(*purpose == Purpose::Up);
        self.resolved.insert("dev-login", on.to_string());
        on
    }

    /// Absent: the role that does it has a default, and nobody else does it.
    fn verify_every(&mut self, purpose: &Purpose) -> Option<Duration> {
        let accepted = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
        let given = self.optional("verify-every", |text| duration(text, accepted.clone()));
        if given.is_none()
            && let Purpose::Run(roles) = purpose
            && roles.contains(&Role::Verify)
        {
            self.resolved.insert("verify-every", format!("{VERIFY_EVERY_MINUTES}m"));
            return Some(Duration::from_secs(60 * VERIFY_EVERY_MINUTES));
        }
        given
    }

    /// What is only wrong together.
    fn check(&mut self, purpose: &Purpose, settings: &Settings) {
        let mut wrong = |mistake: String| self.mistakes.push(mistake);
        let listens = [
            ("QIYU_HTTP_LISTEN", settings.http_listen),
            ("QIYU_WS_LISTEN", settings.ws_listen),
            ("QIYU_TCP_LISTEN", settings.tcp_listen),
        ];
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let (first, second) = (listens[a], listens[b]);
            if first.1 == second.1 && first.1.port() != 0 {
                wrong(format!("{} and {} are both {}", first.0, second.0, first.1));
            }
        }
        match purpose {
            Purpose::Up if settings.nats_url.is_none() && settings.replicas != 1 => {
                wrong("QIYU_REPLICAS over 1 needs a cluster: set QIYU_NATS_URL".to_owned());
            }
            Purpose::Run(roles) => {
                if settings.nats_url.is_none() {
                    wrong("QIYU_NATS_URL is required for `run`".to_owned());
                }
                let signs = roles.iter().any(|role| matches!(role, Role::Gateway | Role::Api));
                if signs && settings.jwt_secret.is_none() {
                    wrong(
                        "QIYU_JWT_SECRET is required for `run` of gateway or api, the same one \
                         for both: the key of connection tickets is derived from it"
                            .to_owned(),
                    );
                }
            }
            Purpose::Up | Purpose::Tool => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(
        purpose: &Purpose,
        flags: &[(&str, &str)],
        env: &[(&str, &str)],
    ) -> Result<Settings, String> {
        let flag = |name: &str| {
            let given = flags.iter().find(|(flag, _)| *flag == name)?;
            Some(given.1.to_owned())
        };
        let env = env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        Settings::resolve(purpose, &flag, env).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn every_row_of_the_table_is_read_and_its_default_good() {
        let settings = resolve(&Purpose::Up, &[], &[]).unwrap();
        for setting in SETTINGS {
            assert!(!setting.doc.is_empty() && !setting.doc.ends_with('.'), "{}", setting.name);
            let resolved = settings.resolved.get(setting.name).map(String::as_str);
            if setting.default.is_some() {
                assert_eq!(resolved, setting.default, "{}", setting.name);
            }
            // A wrong value is noticed, so somebody reads it. These take any text.
            let anything = ["data-dir", "nats-server", "jwks-file", "words-file", "api-key"];
            if !anything.contains(&setting.name) {
                let mistakes = resolve(&Purpose::Up, &[(setting.name, "?")], &[]).unwrap_err();
                assert!(mistakes.contains(&format!("--{}=", setting.name)), "{mistakes}");
            }
        }
    }

    #[test]
    fn a_flag_wins_over_its_variable_and_that_over_the_default() {
        let env =
            [("QIYU_ACK_WAIT", "250ms"), ("QIYU_RETAIN", "24h"), ("QIYU_LOG", ""), ("PATH", "x")];
        let settings =
            resolve(&Purpose::Up, &[("ack-wait", "2m"), ("idle-timeout", "3m")], &env).unwrap();
        assert_eq!(settings.ack_wait, Duration::from_secs(120));
        assert_eq!(settings.retain, Duration::from_secs(24 * 3600));
        assert_eq!(settings.log, "info");
        assert!(settings.dev_login);
        assert!(!resolve(&Purpose::Tool, &[], &[]).unwrap().dev_login);
    }

    #[test]
    fn all_mistakes_are_reported_at_once_and_no_secret() {
        let env = [
            ("QIYU_ACK_WIAT", "1s"),
            ("QIYU_JWT_SECRET", "hunter2"),
            ("QIYU_NATS_URL", "http://ann:hunter2@h:1"),
            ("QIYU_MAX_SENDS", "11"),
        ];
        let flags = [("replicas", "2"), ("ack-wait", "4")];
        let expected = "6 settings are wrong:
  1. QIYU_ACK_WIAT is not a setting; did you mean QIYU_ACK_WAIT?
  2. QIYU_NATS_URL=http://***@h:1 is not a URL that begins with nats: or tls:
  3. QIYU_JWT_SECRET=*** is not at least 32 bytes long, but 7
  4. --replicas=2 is not 1, 3 or 5
  5. --ack-wait=4 is not a duration such as 250ms, 4s, 2m or 24h, from 100ms to 3600s
  6. QIYU_MAX_SENDS=11 is not a whole number from 1 to 10";
        assert_eq!(resolve(&Purpose::Up, &flags, &env).unwrap_err(), expected);
    }

    #[test]
    fn settings_are_checked_together() {
        let env = [("QIYU_WS_LISTEN", "127.0.0.1:8080")];
        let run = Purpose::Run(vec![Role::Fanout, Role::Gateway]);
        let mistakes = resolve(&run, &[], &env).unwrap_err();
        for part in ["3 settings", "both 127.0.0.1:8080"] {
            assert!(mistakes.contains(part), "{mistakes}");
        }
        assert!(mistakes.contains("QIYU_NATS_URL is required"), "{mistakes}");
        let wanted = [("QIYU_NATS_URL", "nats://h:4222")];
        resolve(&Purpose::Run(vec![Role::Fanout]), &[], &wanted).unwrap();
    }

    #[test]
    fn only_the_role_that_verifies_does_so_unasked() {
        let nats = ("QIYU_NATS_URL", "nats://h:4222");
        let run = |role| Purpose::Run(vec![role]);
        let unasked = |purpose: &Purpose| resolve(purpose, &[], &[nats]).unwrap().verify_every;
        assert_eq!(unasked(&run(Role::Verify)), Some(Duration::from_secs(600)));
        for purpose in [run(Role::Living), Purpose::Up, Purpose::Tool] {
            assert_eq!(unasked(&purpose), None, "{purpose:?}");
        }
        for purpose in [run(Role::Verify), Purpose::Up] {
            let asked = resolve(&purpose, &[("verify-every", "1h")], &[nats]).unwrap();
            assert_eq!(asked.verify_every, Some(Duration::from_secs(3600)));
        }
        let never = resolve(&run(Role::Verify), &[("verify-every", "0s")], &[nats]);
        assert!(never.unwrap_err().contains("from 1s to 86400s"));
    }

    #[test]
    fn the_printed_configuration_shows_no_secret() {
        let env = [
            ("QIYU_JWT_SECRET", "0123456789abcdef0123456789abcdef"),
            ("QIYU_NATS_URL", "nats://ann:pw@h:1,nats://ann:pw@g:2"),
            ("QIYU_DATA_DIR", "/d"),
        ];
        let printed = resolve(&Purpose::Up, &[], &env).unwrap().to_string();
        assert_eq!(printed.lines().count(), SETTINGS.len());
        for line in [
            "QIYU_JWT_SECRET=***",
            "QIYU_NATS_URL=nats://***@h:1,nats://***@g:2",
            "QIYU_DATABASE_URL=sqlite:///d/qiyu.db?mode=rwc",
            "QIYU_DEV_LOGIN=true",
            "QIYU_API_KEY=",
        ] {
            assert!(printed.lines().any(|printed| printed == line), "{line} in {printed}");
        }
    }
}
