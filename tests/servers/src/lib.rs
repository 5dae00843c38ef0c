//! A MariaDB and a Redis for one test: real servers in a temporary directory, removed on drop.
//!
//! The stories and the tests of `living` use it. [`start_bus`] starts a nats-server.

mod bus;

pub use bus::start_bus;

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

/// Time limit for the start of a server on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The password of both servers. A log must never show it.
pub const PASSWORD: &str = "a-password-only-the-tests-know";

/// A server that is killed when dropped.
struct Server(Child);

impl Server {
    fn start(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("a log in the home");
        let err = file.try_clone().expect("the log can be shared");
        command.stdin(Stdio::null()).stdout(file).stderr(err);
        Self(command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}")))
    }

    fn is_sent(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("it has an id"), signal).expect("it still runs");
    }

    /// Polls until `ready` returns true; it returns false while the server does not answer.
    async fn comes_up(&mut self, log: &Path, ready: impl Fn() -> bool) {
        let deadline = Instant::now() + START_TIMEOUT;
        while !ready() {
            let ended = self.0.try_wait().expect("a child can be waited for");
            let in_time = ended.is_none() && Instant::now() < deadline;
            let said = || fs::read_to_string(log).unwrap_or_default();
            assert!(in_time, "it did not come up ({ended:?}): {}", said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok(); // it may be dead already
        self.0.wait().ok();
    }
}

/// A MariaDB with a user `qiyu` that has all privileges.
pub struct MariaDb {
    server: Option<Server>,
    home: TempDir,
}

impl MariaDb {
    /// Installs and starts a server.
    pub async fn start() -> Self {
        let home = TempDir::new().expect("a temp dir can be made");
        let mut mariadb = Self { server: None, home };
        let mut install = Command::new("mariadb-install-db");
        install.args(["--no-defaults", "--auth-root-authentication-method=normal"]);
        install.args(["--skip-test-db", "--skip-name-resolve"]);
        mariadb.use_own_directory(&mut install);
        let done = install.output().unwrap_or_else(|error| panic!("{install:?}: {error}"));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        mariadb.comes_back().await;
        let user = format!(
            "CREATE USER qiyu@localhost IDENTIFIED BY '{PASSWORD}'; GRANT ALL ON *.* TO qiyu@localhost"
        );
        mariadb.asks(&user).expect("the user can be made");
        mariadb
    }

    fn use_own_directory(&self, command: &mut Command) {
        command.arg(format!("--datadir={}", self.home.path().join("data").display()));
        // At its start it deletes temporary tables there, also those of another server.
        command.env("TMPDIR", self.home.path());
        if geteuid().is_root() {
            command.arg("--user=root"); // it refuses to be root unasked
        }
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("sock")
    }

    /// Creates an empty database and returns its URL.
    pub fn database(&self, name: &str) -> String {
        self.asks(&format!("CREATE DATABASE {name}")).expect("a database can be made");
        let socket = self.socket().display().to_string();
        format!("mysql://qiyu:{PASSWORD}@localhost/{name}?socket={socket}")
    }

    /// Runs a statement. Returns its rows as lines with cells separated by tabs, or the error text.
    pub fn asks(&self, sql: &str) -> Result<String, String> {
        let mut client = Command::new("mariadb");
        client.arg("--no-defaults").arg(format!("--socket={}", self.socket().display()));
        client.args(["--user=root", "--default-character-set=utf8mb4", "--batch"]);
        client.args(["--skip-column-names", "-e", sql]);
        let done = client.output().unwrap_or_else(|error| panic!("{client:?}: {error}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stderr)) }
    }

    /// Kills the server with SIGKILL.
    pub fn dies(&mut self) {
        self.server = None;
    }

    /// Starts the server again on its stored data.
    pub async fn comes_back(&mut self) {
        // On Debian it lies outside the PATH of an ordinary user.
        let debian = Path::new("/usr/sbin/mariadbd");
        let mut command = Command::new(if debian.exists() { debian } else { "mariadbd".as_ref() });
        command.args(["--no-defaults", "--skip-networking", "--performance-schema=OFF"]);
        command.args(["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M"]);
        command.arg(format!("--socket={}", self.socket().display()));
        command.arg(format!("--pid-file={}", self.home.path().join("pid").display()));
        self.use_own_directory(&mut command);
        let log = self.home.path().join("log");
        let mut server = Server::start(command, &log);
        server.comes_up(&log, || self.asks("SELECT 1").is_ok()).await;
        self.server = Some(server);
    }
}

/// A Redis with a password.
pub struct Redis {
    server: Option<Server>,
    port: u16,
    home: TempDir,
}

impl Redis {
    /// Starts an empty server on a free port.
    pub async fn start() -> Self {
        // Redis cannot report a port that the system chose for it.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let port = free.expect("a free port").port();
        let home = TempDir::new().expect("a temp dir can be made");
        let mut redis = Self { server: None, port, home };
        redis.comes_back().await;
        redis
    }

    /// Returns the URL, with the password.
    pub fn url(&self) -> String {
        format!("redis://:{PASSWORD}@127.0.0.1:{}/0", self.port)
    }

    /// Runs a command with `redis-cli` and returns its output.
    pub fn asks(&self, command: &[&str]) -> String {
        let mut client = Command::new("redis-cli");
        client.args(["-p", &self.port.to_string(), "-a", PASSWORD, "--no-auth-warning"]);
        let done = client.args(command).output();
        let done = done.unwrap_or_else(|error| panic!("{client:?}: {error}"));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    /// Kills the server with SIGKILL.
    pub fn dies(&mut self) {
        self.server = None;
    }

    /// Starts the server again, empty.
    pub async fn comes_back(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--requirepass", PASSWORD, "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(self.home.path());
        let log = self.home.path().join("log");
        let mut server = Server::start(command, &log);
        server.comes_up(&log, || self.asks(&["PING"]) == "PONG").await;
        self.server = Some(server);
    }

    /// Stops the process with SIGSTOP: it accepts connections and does not answer.
    pub fn freezes(&self) {
        self.server.as_ref().expect("it runs").is_sent(Signal::STOP);
    }

    /// Lets the stopped process run again.
    pub fn thaws(&self) {
        self.server.as_ref().expect("it runs").is_sent(Signal::CONT);
    }
}
