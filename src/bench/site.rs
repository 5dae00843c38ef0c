//! The system under load: a running one, or one started for this alone.

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, bail, ensure};
use reqwest::header::{COOKIE, SET_COOKIE};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{process::cpu_time, run::profile_name, settings::Settings};

/// How long a system of its own may take to come up.
const START: Duration = Duration::from_secs(120);
/// How long it may take to stop.
const STOP: Duration = Duration::from_secs(20);
/// How often, and how long after each other, a 429 is asked again.
const TOO_FAST: (u32, Duration) = (300, Duration::from_millis(200));

/// Limits that are there to hold off what a bench does.
const UNLIMITED: [(&str, &str); 9] = [
    ("QIYU_HTTP_RATE", "1000000"),
    ("QIYU_HTTP_BURST", "1000000"),
    ("QIYU_CONNECT_RATE", "1000000"),
    ("QIYU_CONNECT_BURST", "1000000"),
    ("QIYU_SEND_RATE", "1000000"),
    ("QIYU_SEND_BURST", "1000000"),
    ("QIYU_USER_RATE", "0"),
    ("QIYU_ROOM_RATE", "0"),
    ("QIYU_DRAIN_WINDOW", "1s"),
];

/// Where the load goes.
pub(crate) struct Site {
    url: String,
    http: reqwest::Client,
    pids: Vec<String>,
    own: Option<(Child, PathBuf)>,
}

/// Somebody who has logged in.
pub(crate) struct Person {
    pub(crate) user: u64,
    cookie: String,
}

impl Site {
    /// A running system, by the URL of its HTTP.
    pub(crate) fn running(url: String, pids: Vec<String>) -> anyhow::Result<Self> {
        // As elsewhere: whoever comes first decides, and all decide the same.
        rustls::crypto::ring::default_provider().install_default().ok();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), http, pids, own: None })
    }

    /// `qiyu up` on a directory of its own, with no limit that a bench would run into.
    pub(crate) async fn of_its_own(settings: &Settings) -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("qiyu-bench-{:016x}", rand::random::<u64>()));
        let program = std::env::current_exe().context("find this program's own path")?;
        let log = fs::File::create(dir.with_extension("log")).context("create a log")?;
        let mut command = Command::new(program);
        command.args(["up", "--log", "warn", "--profile", profile_name(settings.profile)]);
        command.arg("--data-dir").arg(&dir).envs(UNLIMITED);
        for listen in ["--http-listen", "--ws-listen", "--tcp-listen"] {
            command.args([listen, "127.0.0.1:0"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().context("start a system")?;
        let stdout = child.stdout.take().context("read what the system says")?;
        let mut lines = BufReader::new(stdout).lines();
        let page = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(url) = line.trim().strip_prefix("page ") {
                    return Ok(url.trim().to_owned());
                }
            }
            bail!("the system did not come up; {} tells why", dir.with_extension("log").display())
        };
        let url = timeout(START, page).await.context("wait for the system")??;
        let pid = child.id().context("the system has ended")?.to_string();
        let pids = [pid.clone()].into_iter().chain(children(&pid)).collect();
        let site = Self::running(url, pids)?;
        // The rest of its greeting fits into the pipe; it says nothing more there.
        Ok(Self { own: Some((child, dir)), ..site })
    }

    /// CPU time of the system's processes so far.
    pub(crate) fn cpu(&self) -> Duration {
        self.pids.iter().filter_map(|pid| cpu_time(pid)).sum()
    }

    /// Whether its CPU time is known.
    pub(crate) fn knows_cpu(&self) -> bool {
        !self.pids.is_empty()
    }

    /// Ends what was started.
    pub(crate) async fn close(self) {
        let Some((mut child, dir)) = self.own else { return };
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).ok(); // gone already
        }
        timeout(STOP, child.wait()).await.ok(); // what does not stop is killed when dropped
        fs::remove_dir_all(&dir).ok();
        fs::remove_file(dir.with_extension("log")).ok();
    }

    /// Logs somebody in.
    pub(crate) async fn person(&self, user: u64) -> anyhow::Result<Person> {
        let fields = format!("userId={user}&nickName=bench&vip=true");
        let (cookie, _) = self.post("/user/login", fields, None).await?;
        let cookie = cookie.context("the login brought no cookie")?;
        Ok(Person { user, cookie })
    }

    /// Opens a room of this person's.
    pub(crate) async fn room(&self, anchor: &Person) -> anyhow::Result<u64> {
        let (_, data) =
            self.post("/living/startingLiving", "type=1".to_owned(), Some(anchor)).await?;
        data["roomId"].as_u64().context("the opening brought no roomId")
    }

    /// A ticket and the TCP address to show it at.
    pub(crate) async fn ticket(&self, person: &Person) -> anyhow::Result<(String, String)> {
        let (_, data) = self.post("/im/getImConfig", String::new(), Some(person)).await?;
        let text = |key: &str| {
            let text = data[key].as_str().map(str::to_owned);
            text.with_context(|| format!("getImConfig brought no {key}"))
        };
        Ok((text("token")?, text("tcpImServerAddress")?))
    }

    /// The cookie that was set, and the data of the answer.
    async fn post(
        &self,
        path: &str,
        fields: String,
        person: Option<&Person>,
    ) -> anyhow::Result<(Option<String>, Value)> {
        let (tries, pause) = TOO_FAST;
        for _ in 0..tries {
            let mut request = self.http.post(format!("{}{path}", self.url)).body(fields.clone());
            request = request.header("content-type", "application/x-www-form-urlencoded");
            if let Some(person) = person {
                request = request.header(COOKIE, &person.cookie);
            }
            let reply = request.send().await.with_context(|| format!("ask for {path}"))?;
            if reply.status().as_u16() == 429 {
                sleep(pause).await;
                continue;
            }
            ensure!(reply.status().is_success(), "{path} answers {}", reply.status());
            let set = reply.headers().get(SET_COOKIE).and_then(|cookie| cookie.to_str().ok());
            let cookie = set.and_then(|set| set.split(';').next()).map(str::to_owned);
            let answer: Value = serde_json::from_str(&reply.text().await?)
                .with_context(|| format!("read the answer of {path}"))?;
            match answer["code"].as_i64() {
                Some(200) => return Ok((cookie, answer["data"].clone())),
                Some(429) => sleep(pause).await,
                _ => bail!("{path} answers {answer}"),
            }
        }
        bail!("{path} answers 429 again and again; raise QIYU_HTTP_RATE")
    }
}

/// Processes that `parent` has started.
fn children(parent: &str) -> Vec<String> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let direct = fs::read_to_string(path).unwrap_or_default();
    let others = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let of_threads =
        others.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let mut all: Vec<String> = [direct]
        .into_iter()
        .chain(of_threads)
        .flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    all.sort();
    all.dedup();
    all
}
