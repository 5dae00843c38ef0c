//! A whole running system: one process that is everything, or one process per role.

mod damage;

pub(crate) use damage::Victim;

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::http::{Reply, Request};
use super::nats_server::NatsServer;
use super::person::{Person, Room};
use super::process::{Process, run_to_end};
use super::site::{Door, Site};
use super::socket::Socket;
use super::users;
use super::wait::{PATIENCE, eventually};
use super::wire::Switch;

/// Settings for people who talk faster than people do.
pub(crate) const FAST: &[(&str, &str)] =
    &[("QIYU_SEND_RATE", "100000"), ("QIYU_SEND_BURST", "100000")];

/// Gateways and api must share it.
const SECRET: &str = "a-secret-that-only-the-stories-know-0123456789";

/// A running system in a temporary directory. Stop it with [`Stack::stop`], which also checks it.
pub(crate) struct Stack {
    settings: Vec<(String, String)>,
    site: Arc<Site>,
    parts: Vec<Part>,
    /// Processes ever started with roles: each has a directory and a log of its own.
    hired: usize,
    nats: Vec<NatsServer>,
    // Last, because it has the logs that a process shows when a story fails.
    home: TempDir,
}

/// How processes reach NATS.
#[derive(Clone, Copy, PartialEq)]
enum Wiring {
    Direct,
    /// With a switch before it.
    Switched,
    /// As the user of the role.
    AsUsers,
}

/// One process and what it was started for.
struct Part {
    roles: String,
    /// Its place in the order of starting; its directory and log are named by it.
    number: usize,
    settings: Vec<(String, String)>,
    process: Process,
    /// Where there is one between it and NATS.
    switch: Option<Switch>,
}

impl Part {
    /// `qiyu run <roles>` on the directory of this number, whatever was there before.
    async fn starts(
        home: &Path,
        number: usize,
        roles: &str,
        settings: Vec<(String, String)>,
    ) -> Self {
        let mut labels = vec!["http"];
        if roles.split(',').any(|role| role == "gateway") {
            labels.extend(["websocket", "tcp"]);
        }
        let log = home.join(format!("log-{number}"));
        let process = Process::starts(&["run", roles], &settings, &log, &labels).await;
        Self { roles: roles.to_owned(), number, settings, process, switch: None }
    }

    /// Whether it says of itself that it is ready.
    async fn says_ready(&self) -> bool {
        Request::get("/readyz").send(&self.door().http).await.status == 200
    }

    async fn is_ready(&self) {
        let what = format!("{} is ready", self.process.name());
        eventually(&what, PATIENCE * 2, async || self.says_ready().await).await;
    }

    fn door(&self) -> Door {
        let http = if self.roles == "up" { "page" } else { "http" };
        let address = |label| self.process.address(label);
        Door { http: address(http), ws: address("websocket"), tcp: address("tcp") }
    }

    fn has(&self, role: &str) -> bool {
        self.roles.split(',').any(|one| one == role)
    }
}

/// Starting and stopping.
impl Stack {
    /// `qiyu up` as everybody gets it.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// `qiyu up` with these settings.
    pub(crate) async fn with(settings: &[(&str, &str)]) -> Self {
        let mut stack = Self::empty(settings);
        stack.starts_again().await;
        stack
    }

    /// One process for each of `roles` (`"fanout,presence,living,api"`, `"gateway"`, …) on a
    /// nats-server of their own. Gateways are called g1, g2, … in this order.
    pub(crate) async fn roles(roles: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut stack = Self::empty(settings);
        stack.nats = vec![NatsServer::alone(stack.home.path()).await];
        stack.moves_in(roles, Wiring::Direct).await;
        stack
    }

    /// The same, with a switch in each process's wire to NATS.
    pub(crate) async fn roles_on_wires(roles: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut stack = Self::empty(settings);
        stack.nats = vec![NatsServer::alone(stack.home.path()).await];
        stack.moves_in(roles, Wiring::Switched).await;
        stack
    }

    /// The same on three nats-servers that keep three copies of everything.
    pub(crate) async fn roles_on_three(roles: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut stack = Self::empty(settings);
        stack.nats = NatsServer::three(stack.home.path()).await;
        stack.set("QIYU_REPLICAS", "3");
        stack.moves_in(roles, Wiring::Direct).await;
        stack
    }

    /// One process for each of `roles`, each on the bus as the user it has there, on a nats-server
    /// with the users of `deploy/nats/`. Nobody but `qiyu provision` may make streams, and it
    /// comes when the roles are already there.
    pub(crate) async fn as_users(roles: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut stack = Self::empty(settings);
        let nats =
            NatsServer::deployed(stack.home.path(), "server.conf", &users::passwords()).await;
        let as_provision = users::url(&nats.url(), "provision");
        stack.nats = vec![nats];
        stack.set("QIYU_STREAMS", "wait");
        let provisioning = async {
            let output = run_to_end(&["provision"], &[("QIYU_NATS_URL", &as_provision)]).await;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        tokio::join!(stack.moves_in(roles, Wiring::AsUsers), provisioning);
        stack
    }

    async fn moves_in(&mut self, roles: &[&str], wiring: Wiring) {
        self.site.keeps_secret(SECRET);
        self.set("QIYU_JWT_SECRET", SECRET);
        self.set("QIYU_DEV_LOGIN", "true");
        for roles in roles {
            self.hires(roles, wiring).await;
        }
        for part in &self.parts {
            part.is_ready().await;
        }
        self.opens_its_doors();
    }

    /// Starts a further process with these roles.
    async fn hires(&mut self, roles: &str, wiring: Wiring) {
        let number = self.hired;
        self.hired += 1;
        let data = self.home.path().join(format!("data-{number}"));
        let mut settings = self.settings.clone();
        settings.push(("QIYU_DATA_DIR".to_owned(), data.display().to_string()));
        if roles.split(',').any(|role| role == "gateway") {
            let id = format!("g{}", self.gateways().count() + 1);
            settings.push(("QIYU_GATEWAY_ID".to_owned(), id));
        }
        let switch = match wiring {
            Wiring::Switched => Some(Switch::before(self.nats[0].address()).await),
            Wiring::Direct | Wiring::AsUsers => None,
        };
        let all = self.nats.iter().map(NatsServer::url).collect::<Vec<_>>().join(",");
        let url = match (&switch, wiring) {
            (Some(switch), _) => switch.url(),
            (None, Wiring::AsUsers) => users::url(&all, users::of_role(roles)),
            (None, _) => all,
        };
        settings.push(("QIYU_NATS_URL".to_owned(), url));
        let part = Part::starts(self.home.path(), number, roles, settings).await;
        self.parts.push(Part { switch, ..part });
    }

    fn empty(settings: &[(&str, &str)]) -> Self {
        let home = TempDir::new().expect("a temp dir can be made");
        let (site, parts, nats) = (Arc::default(), Vec::new(), Vec::new());
        let mut stack = Self { home, settings: Vec::new(), site, parts, hired: 0, nats };
        for listen in ["QIYU_HTTP_LISTEN", "QIYU_WS_LISTEN", "QIYU_TCP_LISTEN"] {
            stack.set(listen, "127.0.0.1:0");
        }
        // A story may end with sockets open; nobody waits for them to move elsewhere.
        stack.set("QIYU_DRAIN_WINDOW", "1s");
        // Everybody here comes from one address, and asks until it is so.
        stack.set("QIYU_HTTP_RATE", "10000");
        settings.iter().for_each(|(key, value)| stack.set(key, value));
        stack
    }

    fn set(&mut self, key: &str, value: &str) {
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    /// `qiyu up` on the directory of this stack, whatever was there before.
    pub(crate) async fn starts_again(&mut self) {
        let (data, log) = (self.data_dir(), self.home.path().join("log"));
        let args = ["up", "--data-dir", &data];
        let labels = ["page", "websocket", "tcp", "nats"];
        let process = Process::starts(&args, &self.settings, &log, &labels).await;
        let (roles, settings) = ("up".to_owned(), Vec::new());
        self.parts = vec![Part { roles, number: 0, settings, process, switch: None }];
        self.opens_its_doors();
    }

    /// People find the HTTP of the process that has it and the sockets of the first gateway.
    fn opens_its_doors(&self) {
        let all_in_one = |part: &&Part| part.roles == "up";
        let of = |role: &str| self.parts.iter().find(|part| all_in_one(part) || part.has(role));
        let http = of("api").map(|part| part.door().http).unwrap_or_default();
        let door = of("gateway").map(Part::door).unwrap_or_default();
        self.site.moves_to(Door { http, ..door });
        let gateways = self.parts.iter().filter(|part| all_in_one(part) || part.has("gateway"));
        self.site.has_gateways(gateways.map(Part::door).collect());
    }

    /// SIGTERM, as Ctrl-C: ends well, leaves no child, and the log holds nothing it must not.
    pub(crate) async fn stop(mut self) {
        self.stops().await;
    }

    /// Like [`Stack::stop`], but the directory stays and [`Stack::starts_again`] can follow.
    pub(crate) async fn stops(&mut self) {
        self.parts.sort_by_key(|part| !part.has("gateway"));
        for mut part in self.parts.drain(..) {
            part.process.stops().await;
            self.site.checks(part.process.name(), &part.process.log());
        }
    }

    /// kill -9 for the whole program; whatever it started must end too.
    pub(crate) async fn is_killed(&mut self) {
        let mut part = self.parts.remove(0);
        assert!(!part.process.family().is_empty(), "nats-server is a child of the program");
        part.process.is_killed().await;
    }
}

/// Looking at it.
impl Stack {
    pub(crate) fn data_dir(&self) -> String {
        self.home.path().join("data").display().to_string()
    }

    /// Where people find it.
    pub(crate) fn door(&self) -> Door {
        self.site.door()
    }

    /// The `host:port` that serves the page.
    pub(crate) fn http(&self) -> String {
        self.site.door().http
    }

    /// What no log may show.
    pub(crate) fn keeps_secret(&self, secret: &str) {
        self.site.keeps_secret(secret);
    }

    /// Runs `qiyu <args>` on this system and returns everything it said, and how it ended.
    pub(crate) async fn command(&self, args: &[&str]) -> std::process::Output {
        let data = self.data_dir();
        let url = (!self.nats.is_empty()).then(|| self.nats_url());
        let mut lead = vec![("QIYU_DATA_DIR", data.as_str())];
        lead.extend(url.as_ref().map(|url| ("QIYU_NATS_URL", url.as_str())));
        run_to_end(args, &lead).await
    }

    /// Everything logged so far.
    pub(crate) fn log(&self) -> String {
        self.parts.iter().map(|part| part.process.log()).collect()
    }

    /// Its bus, as this user of `deploy/nats/`.
    pub(crate) fn url_of(&self, user: &str) -> String {
        users::url(&self.nats[0].url(), user)
    }

    /// Its bus, where that is a process of its own and has no users.
    pub(crate) fn nats_url(&self) -> String {
        self.nats[0].url()
    }

    /// Everything its nats-server logged so far, where that is a process of its own.
    pub(crate) fn nats_log(&self) -> String {
        self.nats.iter().map(NatsServer::log).collect()
    }

    /// How far the process that is `role` alone steps back for others; 0: not at all.
    pub(crate) fn niceness_of(&self, role: &str) -> i32 {
        let part = self.parts.iter().find(|part| part.roles == role);
        part.expect("somebody has that role").process.niceness()
    }

    /// Bytes of memory its processes hold, nats-server not counted.
    pub(crate) fn memory(&self) -> u64 {
        self.parts.iter().map(|part| part.process.memory()).sum()
    }

    /// GET from the process that serves the page.
    pub(crate) async fn get(&self, path: &str) -> Reply {
        Request::get(path).send(&self.site.door().http).await
    }

    /// GET from every process: its roles and the reply.
    pub(crate) async fn get_from_each(&self, path: &str) -> Vec<(String, Reply)> {
        let mut replies = Vec::new();
        for part in &self.parts {
            let reply = Request::get(path).send(&part.door().http).await;
            replies.push((part.roles.clone(), reply));
        }
        replies
    }

    /// Sends a request made by hand.
    pub(crate) async fn sends(&self, request: Request) -> Reply {
        request.send(&self.site.door().http).await
    }

    /// The sum of a metric over its labels and all processes.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let mut samples = Vec::new();
        for (_, reply) in self.get_from_each("/metrics").await {
            let text = reply.text();
            samples.extend(text.lines().filter_map(|line| {
                let rest = line.strip_prefix(name)?;
                let of_that_name = rest.starts_with(['{', ' ']);
                of_that_name.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
            }));
        }
        assert!(!samples.is_empty(), "no process has the metric {name}");
        samples.iter().sum()
    }

    /// Every envelope was settled: acknowledged by those who owed it, or given up.
    pub(crate) async fn owes_nothing(&self) {
        eventually("no envelope is pending", PATIENCE, async || {
            self.metric("qiyu_gateway_envelopes_pending").await == 0.0
        })
        .await;
    }
}

/// Its gateways, where they are processes of their own.
impl Stack {
    /// The door of gateway `g<number>`.
    pub(crate) fn gateway(&self, number: usize) -> Door {
        self.gateways().nth(number - 1).map(Part::door).expect("there are that many gateways")
    }

    fn gateways(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| part.has("gateway"))
    }

    fn take_gateway(&mut self, number: usize) -> Part {
        let of_gateways = |(_, part): &(usize, &Part)| part.has("gateway");
        let mut places = self.parts.iter().enumerate().filter(of_gateways);
        let (place, _) = places.nth(number - 1).expect("there are that many gateways");
        self.parts.remove(place)
    }

    /// kill -9; the gateways after it move up by one.
    pub(crate) async fn kills_gateway(&mut self, number: usize) {
        self.take_gateway(number).process.is_killed().await;
    }

    /// SIGTERM: the gateway sends its people elsewhere and ends well.
    pub(crate) async fn drains_gateway(&mut self, number: usize) {
        let mut part = self.take_gateway(number);
        part.process.stops().await;
        self.site.checks(part.process.name(), &part.process.log());
    }
}

/// Its people.
impl Stack {
    /// Somebody who did not log in.
    pub(crate) fn stranger(&self) -> Person {
        Person::stranger(&self.site)
    }

    /// A guest with a name and a face.
    pub(crate) async fn person(&self, name: &str) -> Person {
        self.person_with(name, &[]).await
    }

    /// Somebody who may open a room.
    pub(crate) async fn anchor(&self, name: &str) -> Person {
        self.person_with(name, &[("vip", "true")]).await
    }

    /// Somebody whose number is given.
    pub(crate) async fn person_numbered(&self, name: &str, id: u64) -> Person {
        let person = self.person_with(name, &[("userId", &id.to_string())]).await;
        assert_eq!(person.id, id, "the number survives");
        person
    }

    async fn person_with(&self, name: &str, more: &[(&str, &str)]) -> Person {
        let face = format!("https://faces.example/{name}.png");
        let params = [&[("nickName", name), ("avatar", face.as_str())], more].concat();
        let person = self.stranger().logs_in(&params).await;
        assert_eq!((person.name.as_str(), &person.avatar), (name, &face));
        person
    }

    /// A room whose anchor is not in it.
    pub(crate) async fn room(&self) -> Room {
        self.anchor("the anchor").await.opens_room().await
    }

    /// New people, each in the room with a browser.
    pub(crate) async fn browsers<const N: usize>(
        &self,
        room: &Room,
        names: [&str; N],
    ) -> [Socket; N] {
        let mut sockets = Vec::new();
        for name in names {
            sockets.push(self.person(name).await.ws_into(room).await);
        }
        sockets.try_into().expect("one for each name")
    }

    /// A new person in the room with a phone.
    pub(crate) async fn phone(&self, room: &Room, name: &str) -> Socket {
        self.person(name).await.tcp_into(room).await
    }
}
