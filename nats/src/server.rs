//! A nats-server of our own: found or fetched, run as a child, never orphaned.
//!
//! Only `qiyu up` without `QIYU_NATS_URL` uses it. Two things tie the child to
//! us. Its death signal is set by [`exec_child`], a hidden subcommand of the
//! program itself, because between fork and exec only unsafe code could set
//! it. And its stdin is a locked file, which the kernel unlocks when the last
//! process holding it is gone, so a next child never opens a store that a
//! dying one still writes.

mod data_dir;
mod find;

use std::{
    convert::Infallible,
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rand::Rng as _;
use rustix::process::{Pid, Signal};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

pub use self::{
    data_dir::{
        DataDir, DataDirError, holds_data, read_or_create_private, running_url, write_private,
    },
    find::{FindError, NatsServer, ServerVersion, find},
};
use crate::Profile;
use qiyu_schema::Secret;

/// The hidden subcommand that becomes the nats-server: `<parent pid> <binary> <args…>`.
pub const CHILD_COMMAND: &str = "__nats-server";

/// What the child's only user is called. Its password is random.
const USER: &str = "qiyu";
/// How long a stopped child may take before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long the child of a killed predecessor may take to let go of the store.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(30);
/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// Between two looks at a child that is starting.
const POLL_EVERY: Duration = Duration::from_millis(30);
/// Lines of the log an error quotes.
const QUOTED_LINES: usize = 12;

/// How the child's death is tied to ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChildGuard {
    /// Even a `kill -9` of us ends the child. Names a program that answers
    /// [`CHILD_COMMAND`] with [`exec_child`]: the qiyu binary.
    Program(PathBuf),
    /// Only dropping the [`ChildServer`] ends it: for tests inside a crate.
    Drop,
}

impl ChildGuard {
    /// Guarded by the running program, which must be qiyu.
    ///
    /// # Errors
    ///
    /// When the path of the running program cannot be read.
    pub fn this_program() -> io::Result<Self> {
        std::env::current_exe().map(Self::Program)
    }
}

/// Why the child does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file of the child's could not be read or written.
    #[error("prepare {path:?} for nats-server")]
    Prepare {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A child of a killed predecessor still uses the store.
    #[error("the store in {dir:?} is still used by nats-server process {pid}; stop it first")]
    StoreInUse {
        /// Where the store is.
        dir: PathBuf,
        /// As that server wrote it, or `unknown`.
        pid: String,
    },
    /// No process could be made.
    #[error("run {binary:?}")]
    Spawn {
        /// What was to run.
        binary: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended while it was starting.
    #[error("nats-server ended while starting ({status}); the end of {log:?}:\n{tail}")]
    Exited {
        /// Its exit status.
        status: ExitStatus,
        /// Where its log is.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
}

/// A running nats-server, usable from [`ChildServer::start`] on. Dropping it kills it.
#[derive(Debug)]
pub struct ChildServer {
    child: Child,
    address: String,
    url: Secret,
    log: PathBuf,
}

impl ChildServer {
    /// Starts `server` on the store in `data_dir` and waits until JetStream
    /// answers, which takes minutes when a big store was not closed well.
    /// Every two seconds `progress` hears what it is doing.
    ///
    /// With [`ChildGuard::Program`] this must be polled on the main thread (inside
    /// `Runtime::block_on`, not in a task): the kernel signals the child when
    /// the *thread* that made it ends.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing is left running.
    pub async fn start(
        server: &NatsServer,
        data_dir: &Path,
        profile: Profile,
        guard: &ChildGuard,
        progress: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Self, StartError> {
        let files = Files::under(data_dir)?;
        let store = files.lock_store(progress).await?;
        let password = files.prepare(server.version, profile)?;
        let mut child = files.spawn(server, guard, store)?;
        let address = files.wait_until_usable(&mut child, &password, progress).await?;
        let url = Secret::new(format!("nats://{USER}:{}@{address}", password.expose()));
        Ok(Self { child, address, url, log: files.log() })
    }

    /// `host:port` its clients connect to.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where and as whom to connect.
    pub fn url(&self) -> &Secret {
        &self.url
    }

    /// Where it writes its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Returns when the child has ended by itself. Cancel safe.
    ///
    /// # Errors
    ///
    /// When the child cannot be waited for.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks the child to stop, and kills it when it has not after ten seconds.
    ///
    /// # Errors
    ///
    /// When the child cannot be signalled or waited for.
    pub async fn stop(mut self) -> io::Result<ExitStatus> {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            rustix::process::kill_process(pid, Signal::TERM)?;
        }
        if let Ok(status) = timeout(STOP_PATIENCE, self.child.wait()).await {
            return status;
        }
        tracing::warn!("nats-server did not stop in time and is killed");
        self.child.start_kill()?;
        self.child.wait().await
    }
}

/// Why [`exec_child`] came back.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Only qiyu itself calls this.
    #[error("{CHILD_COMMAND} is for qiyu's own use: <parent pid> <binary> <args…>")]
    Arguments,
    /// The process that wanted a child has died meanwhile.
    #[error("parent {parent} has died")]
    ParentDied {
        /// Its process id.
        parent: i32,
    },
    /// The kernel refused.
    #[error("become {binary:?}")]
    Exec {
        /// What was to run.
        binary: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes the running process a nats-server that ends when its parent does;
/// `args` follow [`CHILD_COMMAND`]. Off Linux the parent's death is not noticed.
///
/// # Errors
///
/// [`ExecError`]; otherwise it does not return.
pub fn exec_child(mut args: impl Iterator<Item = OsString>) -> Result<Infallible, ExecError> {
    let parent = args.next().and_then(|pid| pid.to_str()?.parse::<i32>().ok());
    let (Some(parent), Some(binary)) = (parent, args.next()) else {
        return Err(ExecError::Arguments);
    };
    #[cfg(target_os = "linux")]
    // SIGTERM, not SIGKILL: it closes its store, and opens it faster next time.
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|source| ExecError::Exec { binary: (&binary).into(), source: source.into() })?;
    // A parent that died before the line above sends no signal any more.
    if rustix::process::getppid().map(Pid::as_raw_pid) != Some(parent) {
        return Err(ExecError::ParentDied { parent });
    }
    let source = std::process::Command::new(&binary).args(args).exec();
    Err(ExecError::Exec { binary: binary.into(), source })
}

/// Where everything of the child's is kept.
struct Files {
    dir: PathBuf,
}

impl Files {
    /// Makes the directory.
    fn under(data_dir: &Path) -> Result<Self, StartError> {
        let dir = data_dir.join("nats");
        let made = fs::create_dir_all(&dir)
            .and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)))
            .and_then(|()| dir.canonicalize());
        made.map(|dir| Self { dir }).map_err(|source| prepare_error(data_dir, source))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn log(&self) -> PathBuf {
        self.path("nats-server.log")
    }

    /// Waits until no other nats-server uses the store.
    async fn lock_store(
        &self,
        progress: &mut (dyn FnMut(&str) + Send),
    ) -> Result<File, StartError> {
        let path = self.path("store-lock");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|source| prepare_error(&path, source))?;
        let started = Instant::now();
        let mut said = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(source)) => return Err(prepare_error(&path, source)),
                Err(TryLockError::WouldBlock) if PREDECESSOR_PATIENCE < started.elapsed() => {
                    let pid = fs::read_to_string(self.path("nats-server.pid"));
                    let pid =
                        pid.map_or_else(|_| "unknown".to_owned(), |pid| pid.trim().to_owned());
                    return Err(StartError::StoreInUse { dir: self.dir.clone(), pid });
                }
                Err(TryLockError::WouldBlock) => {
                    if !said {
                        progress("waiting for the previous nats-server to close its store");
                        said = true;
                    }
                    sleep(POLL_EVERY).await;
                }
            }
        }
    }

    /// Writes the configuration; returns the password, the same in every life.
    fn prepare(&self, version: ServerVersion, profile: Profile) -> Result<Secret, StartError> {
        let path = self.path("password");
        let password = read_or_create_private(&path, random_password)
            .map_err(|source| prepare_error(&path, source))?;
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            // The child writes its own; one of a killed predecessor could carry the same pid.
            if path.extension().is_some_and(|kind| kind == "ports") {
                fs::remove_file(&path).map_err(|source| prepare_error(&path, source))?;
            }
        }
        let path = self.path("nats.conf");
        let text = configuration(&self.dir, &password, version, profile);
        write_private(&path, &text).map_err(|source| prepare_error(&path, source))?;
        Ok(Secret::new(password))
    }

    fn spawn(
        &self,
        server: &NatsServer,
        guard: &ChildGuard,
        store: File,
    ) -> Result<Child, StartError> {
        let path = self.path("nats-server.stderr");
        let stderr = File::create(&path).map_err(|source| prepare_error(&path, source))?;
        let (binary, mut command) = match guard {
            ChildGuard::Drop => (&server.path, Command::new(&server.path)),
            ChildGuard::Program(program) => {
                let mut command = Command::new(program);
                command.arg(CHILD_COMMAND).arg(std::process::id().to_string()).arg(&server.path);
                (program, command)
            }
        };
        for (name, _) in std::env::vars_os() {
            // Our secrets are none of its business.
            if name.as_encoded_bytes().starts_with(b"QIYU_") {
                command.env_remove(name);
            }
        }
        command
            .arg("--config")
            .arg(self.path("nats.conf"))
            .stdin(Stdio::from(store))
            .stdout(Stdio::null())
            .stderr(Stdio::from(stderr))
            // Ctrl-C at the terminal is for qiyu, which stops the child last.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| StartError::Spawn { binary: binary.clone(), source })
    }

    /// Returns the address. The server listens only after its store is open.
    async fn wait_until_usable(
        &self,
        child: &mut Child,
        password: &Secret,
        progress: &mut (dyn FnMut(&str) + Send),
    ) -> Result<String, StartError> {
        let started = Instant::now();
        let mut next_progress = started + PROGRESS_EVERY;
        loop {
            tokio::select! {
                // First, because a dead child answers nothing.
                biased;
                status = child.wait() => {
                    let status = status.map_err(|source| prepare_error(&self.dir, source))?;
                    return Err(StartError::Exited { status, log: self.log(), tail: self.tail() });
                }
                () = sleep(POLL_EVERY) => {}
            }
            let ports = child.id().and_then(|pid| self.ports(pid));
            if let Some(address) = ports
                && jetstream_answers(&address, password).await
            {
                return Ok(address);
            }
            if next_progress <= Instant::now() {
                next_progress += PROGRESS_EVERY;
                let seconds = started.elapsed().as_secs();
                // The log's last line names the stream it is at.
                let doing = last_lines(&self.log(), 1);
                progress(&format!("nats-server is opening its store, {seconds} s: {doing}"));
            }
        }
    }

    /// The address in the ports file of process `pid`, once it is written.
    fn ports(&self, pid: u32) -> Option<String> {
        let ending = format!("_{pid}.ports");
        let entries = fs::read_dir(&self.dir).ok()?;
        let file = entries
            .flatten()
            .find(|entry| entry.file_name().to_str().is_some_and(|name| name.ends_with(&ending)))?;
        // Half written is unreadable: the next look finds the rest.
        address_in_ports_file(&fs::read_to_string(file.path()).ok()?)
    }

    /// The last things the child said, in its log or before it had one.
    fn tail(&self) -> String {
        let stderr = last_lines(&self.path("nats-server.stderr"), QUOTED_LINES);
        if stderr.is_empty() { last_lines(&self.log(), QUOTED_LINES) } else { stderr }
    }
}

fn prepare_error(path: &Path, source: io::Error) -> StartError {
    StartError::Prepare { path: path.to_owned(), source }
}

fn random_password() -> String {
    BASE64_URL_SAFE_NO_PAD.encode(rand::rng().random::<[u8; 32]>())
}

/// The child's whole configuration.
fn configuration(dir: &Path, password: &str, version: ServerVersion, profile: Profile) -> String {
    // JSON's quoting is understood by the server, spaces and quotes in a path included.
    let quoted = |name: &str| serde_json::json!(dir.join(name).to_string_lossy()).to_string();
    let sync = match profile {
        Profile::Default => "",
        Profile::Durable => "sync_interval: always",
    };
    // 2.15 limits a stream to 1000 consumers unless told otherwise; 2.14 does not know the key.
    let limits = if ServerVersion::new(2, 15, 0) <= version {
        "limits { default_max_consumers: -1 }"
    } else {
        ""
    };
    format!(
        r#"# Written by qiyu at every start: changes are lost.
server_name: "qiyu"
listen: "127.0.0.1:-1"
ports_file_dir: {ports}
pid_file: {pid}
log_file: {log}
logfile_size_limit: 8MB
logfile_max_num: 3
max_payload: 1MB
max_pending: 64MB
authorization {{ user: "{USER}", password: "{password}" }}
jetstream {{
  store_dir: {store}
  {sync}
  {limits}
}}
"#,
        ports = serde_json::json!(dir.to_string_lossy()),
        pid = quoted("nats-server.pid"),
        log = quoted("nats-server.log"),
        store = quoted("jetstream"),
    )
}

/// `{"nats":["nats://127.0.0.1:4222"], …}` to `127.0.0.1:4222`.
fn address_in_ports_file(text: &str) -> Option<String> {
    let ports = serde_json::from_str::<serde_json::Value>(text).ok()?;
    let url = ports.get("nats")?.get(0)?.as_str()?;
    Some(url.strip_prefix("nats://")?.to_owned())
}

async fn jetstream_answers(address: &str, password: &Secret) -> bool {
    let asked = async {
        let client = async_nats::ConnectOptions::new()
            .user_and_password(USER.to_owned(), password.expose().to_owned())
            .connect(format!("nats://{address}"))
            .await
            .ok()?;
        async_nats::jetstream::new(client).query_account().await.ok()
    };
    matches!(timeout(Duration::from_secs(2), asked).await, Ok(Some(_)))
}

/// The last `lines` lines of `path`, of its last 16 KiB; nothing when it cannot be read.
fn last_lines(path: &Path, lines: usize) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(16 * 1024);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(16 * 1024).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_file_gives_the_address() {
        let given = address_in_ports_file(r#"{"nats":["nats://127.0.0.1:46815"]}"#);
        assert_eq!(given.as_deref(), Some("127.0.0.1:46815"));
        assert_eq!(address_in_ports_file(r#"{"nats":["nats://127."#), None);
        assert_eq!(address_in_ports_file(r#"{"nats":[]}"#), None);
    }

    #[test]
    fn the_configuration_fits_server_and_profile() {
        let dir = Path::new(r#"/a "b"/nats"#);
        let text = configuration(dir, "pw", ServerVersion::new(2, 15, 1), Profile::Durable);
        assert!(text.contains("default_max_consumers: -1"));
        assert!(text.contains("sync_interval: always"));
        assert!(text.contains(r#"store_dir: "/a \"b\"/nats/jetstream""#));
        let text = configuration(dir, "pw", ServerVersion::new(2, 14, 3), Profile::Default);
        assert!(!text.contains("default_max_consumers"));
        assert!(!text.contains("sync_interval"));
    }

    /// One life, then another on the same store; between them nobody uses it.
    #[tokio::test]
    async fn a_child_starts_stops_and_starts_again() {
        let server = find(None, &mut |_| {}).unwrap();
        let dir = std::env::temp_dir().join(format!("qiyu-child-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let start = async || {
            ChildServer::start(&server, &dir, Profile::Durable, &ChildGuard::Drop, &mut |_| {})
                .await
        };
        let first = start().await.unwrap();
        let password = fs::read_to_string(dir.join("nats/password")).unwrap();
        assert!(first.url().expose().contains(&password));
        let mode = fs::metadata(dir.join("nats/nats.conf")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(first.stop().await.unwrap().success());
        let second = start().await.unwrap();
        assert!(second.url().expose().contains(&password));
        let stranger = Secret::new("guess");
        assert!(!jetstream_answers(second.address(), &stranger).await);
        drop(second); // kills it: the next waits until it has let go of the store
        start().await.unwrap().stop().await.unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }

    /// Without a pid and a program there is nothing to become.
    #[test]
    fn the_hidden_command_wants_its_arguments() {
        let args = ["x", "/bin/true"].map(OsString::from).into_iter();
        assert!(matches!(exec_child(args), Err(ExecError::Arguments)));
        assert!(matches!(exec_child(std::iter::empty()), Err(ExecError::Arguments)));
    }
}
