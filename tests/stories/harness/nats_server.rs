//! nats-servers: one alone, or three that keep three copies of everything.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::http::Request;
use super::process::Process;
use super::wait::eventually;

/// How long a server may take to have caught up with the others.
const HEALTH: Duration = Duration::from_secs(30);

/// A nats-server with a store and an address of its own, which it keeps.
pub(crate) struct NatsServer {
    pub(crate) name: String,
    home: PathBuf,
    listen: String,
    monitor: String,
    args: Vec<String>,
    variables: Vec<(String, String)>,
    process: Process,
}

impl NatsServer {
    /// One that needs nobody.
    pub(crate) async fn alone(home: &Path) -> Self {
        let [listen, monitor] = free_addresses();
        Self::configured("nats", home, listen, monitor, "").await
    }

    /// One on this configuration of `deploy/nats/`, of which only the addresses and the store are
    /// others, with these variables.
    pub(crate) async fn deployed(
        home: &Path,
        config: &str,
        variables: &[(String, String)],
    ) -> Self {
        let [listen, monitor] = free_addresses();
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nats").join(config);
        let port = |address: &str| address.rsplit(':').next().unwrap_or_default().to_owned();
        let (config, store) = (config.display().to_string(), home.join("jetstream"));
        let args = ["-c", &config, "-a", "127.0.0.1", "-p", &port(&listen), "-m", &port(&monitor)];
        let mut args = args.map(str::to_owned).to_vec();
        args.extend(["-sd".to_owned(), store.display().to_string()]);
        Self::starts("nats", home, listen, monitor, args, variables.to_vec()).await
    }

    /// Three that know each other.
    pub(crate) async fn three(home: &Path) -> Vec<Self> {
        let [a, b, c, ra, rb, rc, ma, mb, mc] = free_addresses();
        let all = [&ra, &rb, &rc].map(|route| format!("\"nats://{route}\"")).join(", ");
        let mut servers = Vec::new();
        let each = [("n1", a, ra, ma), ("n2", b, rb, mb), ("n3", c, rc, mc)];
        for (name, listen, route, monitor) in each {
            // Clients know the three they were told of, and learn of no other way.
            let cluster = format!(
                "server_name: {name}\ncluster {{ name: story, listen: {route:?}, routes: [{all}], \
                 no_advertise: true }}\n"
            );
            let home = home.join(name);
            fs::create_dir(&home).expect("the temp dir can be written");
            servers.push(Self::configured(name, &home, listen, monitor, &cluster).await);
        }
        servers
    }

    /// `cluster`: what it has to know of the others.
    async fn configured(
        name: &str,
        home: &Path,
        listen: String,
        monitor: String,
        cluster: &str,
    ) -> Self {
        let (config, store) = (home.join("nats.conf"), home.join("jetstream"));
        let text = format!(
            "listen: {listen:?}\nhttp: {monitor:?}\njetstream {{ store_dir: {store:?} }}\n{cluster}"
        );
        fs::write(&config, text).expect("the temp dir can be written");
        let args = vec!["-c".to_owned(), config.display().to_string()];
        Self::starts(name, home, listen, monitor, args, Vec::new()).await
    }

    async fn starts(
        name: &str,
        home: &Path,
        listen: String,
        monitor: String,
        args: Vec<String>,
        variables: Vec<(String, String)>,
    ) -> Self {
        let process = Process::starts_nats(home, &args, &variables).await;
        let (name, home) = (name.to_owned(), home.to_owned());
        Self { name, home, listen, monitor, args, variables, process }
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.listen
    }

    /// As the setting has it.
    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.listen)
    }

    /// Starts it on the same store and at the same address.
    pub(crate) async fn starts_again(&mut self) {
        self.process = Process::starts_nats(&self.home, &self.args, &self.variables).await;
    }

    /// It has all that the others have.
    pub(crate) async fn is_healthy(&self) {
        eventually(&format!("{} has caught up", self.name), HEALTH, async || {
            Request::get("/healthz").send(&self.monitor).await.status == 200
        })
        .await;
    }

    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Addresses nobody listens on: a server that comes back needs the one it had.
fn free_addresses<const N: usize>() -> [String; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port is free"));
    held.map(|listener| listener.local_addr().expect("a bound port has an address").to_string())
}
