//! Damage: what dies, freezes and comes back while people talk.
//!
//! A process is named by one of its roles and its place among those that have it: `("gateway", 1)`
//! is the second gateway. It keeps its place, its directory and its id when it comes back, but not
//! its ports.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;

use super::super::bus::Nats;
use super::super::wait::eventually;
use super::super::wire::Wire;
use super::{Part, Process, Stack, Wiring};

/// An election takes 4 to 9 s, and may have to be held again.
const ELECTION: Duration = Duration::from_secs(30);

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
        let switch = self.parts[place].switch.take();
        self.parts[place] = Part { switch, ..anew };
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

/// Those who come and go for good.
impl Stack {
    /// A further process with these roles; waits until it is ready.
    pub(crate) async fn gains(&mut self, roles: &str) {
        self.hires(roles, Wiring::Direct).await;
        self.parts.last().expect("it was just started").is_ready().await;
        self.opens_its_doors();
    }

    /// SIGTERM, and nobody takes its place.
    pub(crate) async fn loses(&mut self, victim: Victim) {
        self.ends(victim).await;
        let place = self.place(victim);
        self.parts.remove(place);
        self.opens_its_doors();
    }
}

/// The wires to NATS, where they have switches.
impl Stack {
    pub(crate) fn wire_becomes(&self, victim: Victim, wire: Wire) {
        let part = &self.parts[self.place(victim)];
        part.switch.as_ref().expect("it is on a wire").becomes(wire);
    }

    /// What it says of itself at `/readyz`.
    pub(crate) async fn says_ready(&self, victim: Victim) -> bool {
        self.parts[self.place(victim)].says_ready().await
    }
}

/// A look at the bus, and a hand in it.
impl Stack {
    pub(crate) async fn nats(&self) -> Nats {
        Nats::open(&self.nats[0].url()).await
    }
}

/// One of three nats-servers, by its place.
impl Stack {
    /// Which one leads this stream, as one that is not `but` knows it.
    pub(crate) async fn leader_of(&self, stream: &str, but: Option<usize>) -> usize {
        let (asked, _) = (self.nats.iter().enumerate())
            .find(|(place, _)| Some(*place) != but)
            .expect("there are three");
        let mut leader = None;
        eventually(&format!("{stream} has a leader"), ELECTION, async || {
            let mut nats = Nats::open(&self.nats[asked].url()).await;
            let name = nats.leader_of(stream).await;
            leader = self.nats.iter().position(|server| Some(&server.name) == name.as_ref());
            leader.is_some()
        })
        .await;
        leader.expect("it was just seen")
    }

    pub(crate) async fn kills_server(&mut self, place: usize) {
        self.nats[place].process().is_killed().await;
    }

    pub(crate) fn freezes_server(&mut self, place: usize) {
        self.nats[place].process().is_sent(Signal::STOP);
    }

    pub(crate) fn thaws_server(&mut self, place: usize) {
        self.nats[place].process().is_sent(Signal::CONT);
    }

    /// SIGTERM.
    pub(crate) async fn ends_server(&mut self, place: usize) {
        self.nats[place].process().stops().await;
    }

    /// Starts it on what it had, and waits until it has caught up with the others.
    pub(crate) async fn revives_server(&mut self, place: usize) {
        self.nats[place].starts_again().await;
        self.nats[place].is_healthy().await;
    }
}

/// The bus, and everything.
impl Stack {
    /// kill -9 for nats-server.
    pub(crate) async fn kills_nats(&mut self) {
        self.nats[0].process().is_killed().await;
    }

    /// Starts nats-server on the same store and at the same address.
    pub(crate) async fn revives_nats(&mut self) {
        self.nats[0].starts_again().await;
    }

    /// SIGTERM for nats-server, and a new one at once.
    pub(crate) async fn replaces_nats(&mut self) {
        self.nats[0].process().stops().await;
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
        let nats = self.nats.iter_mut().map(|server| server.process());
        nats.chain(self.parts.iter_mut().map(|part| &mut part.process))
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
