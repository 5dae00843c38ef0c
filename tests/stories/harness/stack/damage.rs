//! Damage: what dies, freezes and comes back while people talk.
//!
//! A process is named by one of its roles and its place among those that have it: `("gateway", 1)`
//! is the second gateway. It keeps its place, its directory and its id when it comes back, but not
//! its ports.

use std::path::Path;

use futures_util::future::join_all;
use rustix::process::Signal;

use super::super::process::run_to_end;
use super::{Part, Process, Stack};

/// Whose turn it is.
pub(crate) type Victim = (&'static str, usize);

/// One process.
impl Stack {
    fn place(&self, (role, number): Victim) -> usize {
        let mut places = (0..self.parts.len()).filter(|place| self.parts[*place].has(role));
        places.nth(number).unwrap_or_else(|| panic!("there is no {role} {number}"))
    }

    /// Where the people of this gateway are connected to.
    pub(crate) fn addresses(&self, victim: Victim) -> Vec<String> {
        let door = self.parts[self.place(victim)].door();
        vec![door.ws, door.tcp]
    }

    /// kill -9. What is dead must be revived before the story ends.
    pub(crate) async fn kills(&mut self, victim: Victim) {
        let place = self.place(victim);
        self.parts[place].process.is_killed().await;
    }

    /// Starts what is dead, in its place, and waits until it is ready.
    pub(crate) async fn revives(&mut self, victim: Victim) {
        let place = self.place(victim);
        self.begins_anew(place).await;
    }

    async fn begins_anew(&mut self, place: usize) {
        let (home, part) = (self.home.path(), &self.parts[place]);
        let settings = part.settings.clone();
        let anew = Part::starts(home, part.number, &part.roles, settings).await;
        anew.is_ready().await;
        self.parts[place] = anew;
        self.opens_its_doors();
    }

    /// SIGSTOP: it does nothing, and everything it holds stays open.
    pub(crate) fn freezes(&self, victim: Victim) {
        self.parts[self.place(victim)].process.is_sent(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn thaws(&self, victim: Victim) {
        self.parts[self.place(victim)].process.is_sent(Signal::CONT);
    }

    /// SIGTERM; it must end well.
    pub(crate) async fn ends(&mut self, victim: Victim) {
        let place = self.place(victim);
        self.parts[place].process.stops().await;
        let process = &self.parts[place].process;
        self.site.checks(process.name(), &process.log());
    }
}

/// The bus, and everything.
impl Stack {
    /// kill -9 for nats-server.
    pub(crate) async fn kills_nats(&mut self) {
        self.nats.as_mut().expect("it has one of its own").is_killed().await;
    }

    /// Starts nats-server on the same store and at the same address.
    pub(crate) async fn revives_nats(&mut self) {
        let (_, url) = self.settings.iter().find(|(key, _)| key == "QIYU_NATS_URL").expect("set");
        let listen = url.trim_start_matches("nats://").to_owned();
        let output = run_to_end(&["fetch-nats"], &[]).await;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let binary = Path::new(said.lines().last().unwrap_or_default());
        let (nats, _) = Process::starts_nats_on(self.home.path(), binary, &listen).await;
        self.nats = Some(nats);
    }

    /// SIGTERM for nats-server, and a new one at once.
    pub(crate) async fn replaces_nats(&mut self) {
        self.nats.as_mut().expect("it has one of its own").stops().await;
        self.revives_nats().await;
    }

    /// kill -9 for every process in the same moment.
    pub(crate) async fn kills_everything(&mut self) {
        for process in self.all() {
            process.is_sent(Signal::KILL);
        }
        for process in self.all() {
            process.is_gone().await;
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Process> {
        self.nats.iter_mut().chain(self.parts.iter_mut().map(|part| &mut part.process))
    }

    /// Starts everything again, as a machine would that has just booted: all at once.
    pub(crate) async fn revives_everything(&mut self) {
        self.revives_nats().await;
        let home = self.home.path();
        let anew = self
            .parts
            .iter()
            .map(|part| Part::starts(home, part.number, &part.roles, part.settings.clone()));
        self.parts = join_all(anew).await;
        self.opens_its_doors();
        join_all(self.parts.iter().map(Part::is_ready)).await;
    }
}

/// A machine whose power fails.
impl Stack {
    /// `qiyu up` whose data directory `prepare` makes.
    pub(crate) async fn up_on(prepare: impl FnOnce(&Path), settings: &[(&str, &str)]) -> Self {
        let mut stack = Self::empty(settings);
        prepare(Path::new(&stack.data_dir()));
        stack.starts_again().await;
        stack
    }

    /// SIGSTOP for the nats-server that `qiyu up` started.
    pub(crate) fn freezes_its_nats(&self) {
        let family = self.parts[0].process.family();
        let nats: Vec<_> = family.iter().filter(|member| member.name() == "nats-server").collect();
        assert_eq!(nats.len(), 1, "one nats-server is a child of the program");
        nats[0].is_sent(Signal::STOP);
    }
}
