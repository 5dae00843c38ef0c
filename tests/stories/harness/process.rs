//! One process of the program under test, and the children it must not leave behind.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use super::wait::{PATIENCE, eventually};

/// A first start may have to fetch nats-server.
const START: Duration = Duration::from_secs(60);

/// How long a process may take to stop by itself.
const STOP: Duration = Duration::from_secs(15);

/// The program, with none of our own settings in its environment.
pub(super) fn qiyu(args: &[&str], settings: &[(String, String)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qiyu"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("QIYU_")) {
        command.env_remove(key);
    }
    command.args(args).envs(settings.iter().map(|(key, value)| (key, value)));
    command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    command
}

/// Runs `qiyu <args>` to its end and returns everything it said.
pub(crate) async fn run_to_end(args: &[&str], settings: &[(&str, &str)]) -> Output {
    let owned = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let owned: Vec<_> = owned.collect();
    match timeout(START, qiyu(args, &owned).output()).await {
        Ok(output) => output.expect("the program can be run"),
        Err(_) => panic!("qiyu {args:?} was still running after {START:?}"),
    }
}

/// The nats-server of the version the program itself uses.
async fn nats_server() -> PathBuf {
    let output = run_to_end(&["fetch-nats"], &[]).await;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    said.lines().last().unwrap_or_default().into()
}

/// A running process, killed with everything it started when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    leader: Pid,
    log: PathBuf,
    /// What it printed once it was up: `websocket` → `ws://127.0.0.1:8086/`.
    printed: BTreeMap<String, String>,
    /// Children it had when it was last asked to end.
    orphans: BTreeSet<Member>,
}

impl Process {
    /// Starts `qiyu <args>` and waits until it has printed a line for each of `labels`.
    pub(crate) async fn starts(
        args: &[&str],
        settings: &[(String, String)],
        log: &Path,
        labels: &[&str],
    ) -> Self {
        let name = format!("qiyu {}", args.join(" "));
        let mut command = qiyu(args, settings);
        let mut process = Self::spawn(name, &mut command, log);
        let stdout = process.child.stdout.take().expect("stdout is piped");
        let mut lines = BufReader::new(stdout).lines();
        let read = async {
            while !labels.iter().all(|label| process.printed.contains_key(*label)) {
                let Ok(Some(line)) = lines.next_line().await else { return false };
                let mut words = line.split_whitespace();
                if let (Some(label), Some(value)) = (words.next(), words.next()) {
                    process.printed.insert(label.to_owned(), value.to_owned());
                }
            }
            true
        };
        let up = timeout(START, read).await;
        if up != Ok(true) {
            panic!("{} did not come up ({up:?}): {}", process.name, process.tail());
        }
        // Nobody reads on, but a closed pipe would make it fail at its next line.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        process
    }

    /// Starts `qiyu <args>`, and hands out what it prints, line by line. Who drops the lines has
    /// stopped reading, as `head` does.
    pub(crate) fn tells(args: &[&str], log: &Path) -> (Self, Lines<BufReader<ChildStdout>>) {
        let name = format!("qiyu {}", args.join(" "));
        let mut process = Self::spawn(name, &mut qiyu(args, &[]), log);
        let stdout = process.child.stdout.take().expect("stdout is piped");
        (process, BufReader::new(stdout).lines())
    }

    /// Starts a nats-server of the version the program itself uses.
    pub(crate) async fn starts_nats(
        home: &Path,
        args: &[String],
        variables: &[(String, String)],
    ) -> Self {
        let mut command = Command::new(nats_server().await);
        command.args(args).envs(variables.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        let log = home.join("nats.log");
        let before = fs::read(&log).unwrap_or_default().len();
        let process = Self::spawn("nats-server".to_owned(), &mut command, &log);
        eventually("nats-server listens", START, async || {
            process.log().split_off(before).contains("Server is ready")
        })
        .await;
        process
    }

    fn spawn(name: String, command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log);
        let file = file.expect("the log can be written");
        command.stdout(Stdio::piped()).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("start {name}: {error}"));
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let leader = id.expect("a child that was not waited for has an id");
        let (log, printed, orphans) = (log.to_owned(), BTreeMap::new(), BTreeSet::new());
        Self { name, child, leader, log, printed, orphans }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The `host:port` it printed for `label`, or nothing where it has none.
    pub(crate) fn address(&self, label: &str) -> String {
        let Some(url) = self.printed.get(label) else { return String::new() };
        let address = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        address.trim_end_matches('/').to_owned()
    }

    /// Everything it wrote to its log so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Bytes of memory it holds (`proc_pid_status(5)`).
    pub(crate) fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.leader.as_raw_nonzero());
        let status = fs::read_to_string(path).expect("it is still running");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kib.expect("a running process has memory") * 1024
    }

    /// From -20 to 19, as `proc_pid_stat(5)` has it: 19th, and the state behind the name is third.
    pub(crate) fn niceness(&self) -> i32 {
        let path = format!("/proc/{}/stat", self.leader.as_raw_nonzero());
        let stat = fs::read_to_string(path).expect("it is still running");
        let (_, rest) = stat.rsplit_once(')').expect("its name is in parentheses");
        let niceness = rest.split_whitespace().nth(16).and_then(|word| word.parse().ok());
        niceness.expect("a number")
    }

    fn tail(&self) -> String {
        let mut lines = VecDeque::from_iter(self.log().lines().map(str::to_owned));
        lines.drain(..lines.len().saturating_sub(40));
        lines.into_iter().fold(String::new(), |all, line| all + "\n    " + &line)
    }

    /// Asks it to stop and waits for it; it must end well and leave no child behind.
    pub(crate) async fn stops(&mut self) {
        self.orphans = self.family();
        kill_process(self.leader, Signal::TERM).expect("it was still running");
        let status = self.ends().await;
        assert!(status.success(), "{} ended with {status}: {}", self.name, self.tail());
        self.outlives_nobody().await;
    }

    /// kill -9: it gets no chance to say goodbye to anybody.
    pub(crate) async fn is_killed(&mut self) {
        self.orphans = self.family();
        kill_process(self.leader, Signal::KILL).expect("it was still running");
        self.ends().await;
        self.outlives_nobody().await;
    }

    /// A signal, without waiting for what comes of it.
    pub(crate) fn is_sent(&self, signal: Signal) {
        kill_process(self.leader, signal).expect("it was still running");
    }

    /// Waits for the end of what was sent SIGKILL.
    pub(crate) async fn is_gone(&mut self) {
        self.ends().await;
    }

    /// Waits until it has ended by itself, and well.
    pub(crate) async fn ends_well(&mut self) {
        let status = self.ends().await;
        assert!(status.success(), "{} ended with {status}: {}", self.name, self.tail());
    }

    async fn ends(&mut self) -> ExitStatus {
        match timeout(STOP, self.child.wait()).await {
            Ok(status) => status.expect("a child can be waited for"),
            Err(_) => panic!("{} did not end within {STOP:?}: {}", self.name, self.tail()),
        }
    }

    async fn outlives_nobody(&self) {
        let what = format!("no child of {} is left", self.name);
        eventually(&what, PATIENCE, async || self.orphans.is_disjoint(&Member::all_alive())).await;
    }

    /// The processes it started, and theirs.
    pub(crate) fn family(&self) -> BTreeSet<Member> {
        let alive = Member::all_alive();
        let mut family = BTreeSet::new();
        let mut parents = VecDeque::from([self.leader.as_raw_nonzero().get()]);
        while let Some(parent) = parents.pop_front() {
            for child in alive.iter().filter(|member| member.parent == parent) {
                parents.push_back(child.id);
                family.insert(child.clone());
            }
        }
        family
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the end of the log of {}:{}", self.name, self.tail());
        }
        let alive = Member::all_alive();
        let left = self.orphans.intersection(&alive).cloned();
        for member in self.family().into_iter().chain(left) {
            Pid::from_raw(member.id).map(|pid| kill_process(pid, Signal::KILL).ok());
        }
        // Its group is its own; once everybody in it has ended, this finds nobody.
        kill_process_group(self.leader, Signal::KILL).ok();
    }
}

/// A process as `/proc` shows it. Its birth keeps a reused id from being taken for it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    id: i32,
    born: u64,
    parent: i32,
}

// A child whose parent died gets another parent and stays itself.
impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Member {}

impl PartialOrd for Member {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Member {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.id, self.born).cmp(&(other.id, other.born))
    }
}

impl Member {
    /// The name of what it runs.
    pub(crate) fn name(&self) -> String {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.id));
        name.unwrap_or_default().trim().to_owned()
    }

    pub(crate) fn is_sent(&self, signal: Signal) {
        let pid = Pid::from_raw(self.id).expect("a process has an id");
        kill_process(pid, signal).expect("it was still running");
    }

    /// Every process that runs; one that only waits to be reaped does not.
    fn all_alive() -> BTreeSet<Self> {
        let folders = fs::read_dir("/proc").into_iter().flatten().flatten();
        folders.filter_map(|folder| Self::read(&folder.path().join("stat"))).collect()
    }

    /// Fields of `proc_pid_stat(5)`: after the name come state, parent, and, 20th, the birth.
    fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let (id, _) = text.split_once(' ')?;
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        let alive = !matches!(*fields.first()?, "Z" | "X");
        let born = fields.get(19)?.parse().ok()?;
        let member = Self { id: id.parse().ok()?, born, parent: fields.get(1)?.parse().ok()? };
        alive.then_some(member)
    }
}
