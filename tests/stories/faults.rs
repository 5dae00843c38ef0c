//! Nothing that was receipted is lost, whatever dies (`docs/PROTOCOL.md` §4 to §6).
//!
//! Each story is a fault that strikes, at a moment, a crowd that talks all the time; a checker
//! judges the record. `docs/RELIABILITY.md` has the results and says what is not covered.
//!
//! `QIYU_FAULT_SEED=n` gives a printed seed back; `QIYU_FAULT_ROUNDS=n` makes it the long version:
//! so many rounds of every fault, each with the next moment and the next seed.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};

use crate::harness::{FAST, PATIENCE, Person, Room, Stack, Victim, Wire, eventually};
use checker::{Verdict, What, judge};
use crowd::{Comeback, Crowd, Device, Habits};
use image::Image;

#[path = "harness/checker.rs"]
mod checker;
#[path = "harness/crowd.rs"]
mod crowd;
#[path = "harness/image.rs"]
mod image;

/// Every role that may die alone in a process of its own.
const ROLES: &[&str] = &["fanout", "fanout", "presence,living,api", "gateway", "gateway"];
/// And one more gateway.
const MORE_ROLES: &[&str] =
    &["fanout", "fanout", "presence,living,api", "gateway", "gateway", "gateway"];
const GATEWAY: Victim = ("gateway", 0);
const WORKER: Victim = ("fanout", 0);
/// The stream whose leader is lost.
const LOG: &str = "IM_IN";

/// How long the rest of the talk may take to arrive once nobody says anything new.
const SETTLE: Duration = Duration::from_secs(30);
/// Until messages flow again, whatever died: a lease of 7 s, an election, a busy machine.
const FLOW: Duration = Duration::from_secs(20);
/// The users of a dead gateway are offline within this (`docs/PROTOCOL.md` §6).
const OFFLINE: Duration = Duration::from_secs(10);
/// Until a gateway without NATS sends its people away: 30 s after it is suspended, which is 5 s
/// after the last renewal (architecture.md, "Presence").
const GIVEN_UP: Duration = Duration::from_secs(50);
/// Nobody waits for longer than this beyond what the server asked for, where it ends in order.
const AWAY: Duration = Duration::from_secs(5);
/// The talk goes on for so long after a fault is over.
const AFTERMATH: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    GatewayKilled,
    GatewayCrashed,
    GatewayFrozen,
    GatewayFaint,
    WorkersKilled,
    WorkerFrozen,
    BusKilled,
    BusCrashed,
    BusAway,
    BusGone,
    LeaderKilled,
    LeaderFrozen,
    LeaderReplaced,
    ServersReplaced,
    GatewayUnplugged,
    GatewayCutOff,
    GatewayIsolated,
    WorkerCutOff,
    WorkersChanged,
    StruckTwice,
    GatewayDrained,
    RollingRestart,
    EverythingKilled,
    PowerCut,
}

/// When it strikes, in the life of some message.
#[derive(Clone, Copy, Debug)]
enum Moment {
    BeforeStore,
    AfterStore,
    BeforeAck,
}

const MOMENTS: [Moment; 3] = [Moment::BeforeStore, Moment::AfterStore, Moment::BeforeAck];

#[tokio::test]
async fn a_gateway_is_killed() {
    suffers(Fault::GatewayKilled).await;
}

#[tokio::test]
async fn a_gateway_is_killed_and_started_again_at_once() {
    suffers(Fault::GatewayCrashed).await;
}

#[tokio::test]
async fn a_gateway_freezes_and_wakes_up() {
    suffers(Fault::GatewayFrozen).await;
}

#[tokio::test]
async fn a_gateway_freezes_for_about_as_long_as_its_lease() {
    suffers(Fault::GatewayFaint).await;
}

#[tokio::test]
async fn workers_are_killed_three_times() {
    suffers(Fault::WorkersKilled).await;
}

#[tokio::test]
async fn a_worker_freezes_and_wakes_up() {
    suffers(Fault::WorkerFrozen).await;
}

#[tokio::test]
async fn nats_is_killed() {
    suffers(Fault::BusKilled).await;
}

#[tokio::test]
async fn nats_is_killed_and_started_again_at_once() {
    suffers(Fault::BusCrashed).await;
}

#[tokio::test]
async fn nats_is_away_for_longer_than_a_lease() {
    suffers(Fault::BusAway).await;
}

#[tokio::test]
async fn nats_is_gone_for_longer_than_anybody_waits() {
    suffers(Fault::BusGone).await;
}

#[tokio::test]
async fn of_three_nats_servers_the_logs_leader_is_killed() {
    suffers(Fault::LeaderKilled).await;
}

#[tokio::test]
async fn of_three_nats_servers_the_logs_leader_freezes() {
    suffers(Fault::LeaderFrozen).await;
}

#[tokio::test]
async fn of_three_nats_servers_the_logs_leader_is_restarted() {
    suffers(Fault::LeaderReplaced).await;
}

#[tokio::test]
async fn three_nats_servers_are_restarted_one_by_one() {
    suffers(Fault::ServersReplaced).await;
}

#[tokio::test]
async fn a_gateway_loses_nats_for_less_than_its_lease() {
    suffers(Fault::GatewayUnplugged).await;
}

#[tokio::test]
async fn a_gateway_loses_nats_for_longer_than_its_lease() {
    suffers(Fault::GatewayCutOff).await;
}

#[tokio::test]
async fn a_gateway_loses_nats_for_longer_than_anybody_waits() {
    suffers(Fault::GatewayIsolated).await;
}

#[tokio::test]
async fn a_worker_loses_nats() {
    suffers(Fault::WorkerCutOff).await;
}

#[tokio::test]
async fn workers_come_and_go() {
    suffers(Fault::WorkersChanged).await;
}

#[tokio::test]
async fn a_second_fault_strikes_while_the_first_is_mended() {
    suffers(Fault::StruckTwice).await;
}

#[tokio::test]
async fn a_gateway_full_of_people_is_stopped() {
    suffers(Fault::GatewayDrained).await;
}

#[tokio::test]
async fn every_process_is_replaced_one_by_one() {
    suffers(Fault::RollingRestart).await;
}

#[tokio::test]
async fn everything_is_killed_at_once() {
    suffers(Fault::EverythingKilled).await;
}

#[tokio::test]
async fn the_power_is_cut() {
    suffers(Fault::PowerCut).await;
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

async fn suffers(fault: Fault) {
    let first = number("QIYU_FAULT_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    for seed in first..first + number("QIYU_FAULT_ROUNDS").unwrap_or(1) {
        let moment = MOMENTS[usize::try_from(seed % 3).unwrap()];
        eprintln!("{fault:?} {moment:?} QIYU_FAULT_SEED={seed}");
        match fault {
            Fault::PowerCut => power_is_cut(moment, seed).await,
            _ => Scene::of(fault, moment, seed).await.plays().await,
        }
    }
}

/// The system, the crowd in it, and what is going to happen.
struct Scene {
    fault: Fault,
    moment: Moment,
    rng: StdRng,
    stack: Stack,
    crowd: Crowd,
    anchors: Vec<Person>,
    rooms: Vec<Room>,
    people: Vec<Person>,
    /// Those of the first gateway who do not come back.
    leaving: Vec<Person>,
    /// People inside each room, once those have left.
    inside: Vec<u64>,
    notes: Vec<String>,
}

/// Setting it.
impl Scene {
    async fn of(fault: Fault, moment: Moment, seed: u64) -> Self {
        let rates = [("QIYU_HTTP_BURST", "100000"), ("QIYU_CONNECT_RATE", "100000")];
        let more = [("QIYU_CONNECT_BURST", "100000"), ("QIYU_DRAIN_WINDOW", "3s")];
        let settings = [FAST, &rates, &more].concat();
        let stack = match fault {
            Fault::LeaderKilled
            | Fault::LeaderFrozen
            | Fault::LeaderReplaced
            | Fault::ServersReplaced => Stack::roles_on_three(ROLES, &settings).await,
            Fault::GatewayUnplugged
            | Fault::GatewayCutOff
            | Fault::GatewayIsolated
            | Fault::WorkerCutOff => Stack::roles_on_wires(ROLES, &settings).await,
            Fault::StruckTwice => Stack::roles(MORE_ROLES, &settings).await,
            _ => Stack::roles(ROLES, &settings).await,
        };
        let mut scene = Self::on(stack, fault, moment, seed);
        let loud = Duration::from_millis(if fault == Fault::GatewayDrained { 800 } else { 400 });
        scene.opens_rooms(6).await;
        let doors = [scene.stack.gateway(1), scene.stack.gateway(2)];
        for number in 0..24 {
            let person = scene.stack.person(&format!("member {number}")).await;
            let habits = scene.habits(number, loud);
            let door = &doors[usize::from(fault != Fault::GatewayDrained && number / 6 % 2 == 1)];
            scene.joins(&person, &person.via(door), habits).await;
        }
        for number in 24..50 {
            if fault == Fault::GatewayDrained {
                let person = scene.stack.person(&format!("member {number}")).await;
                let habits = scene.habits(number, loud);
                scene.joins(&person, &person.via(&doors[0]), habits).await;
            }
        }
        for number in 0..3 {
            let person = scene.stack.person(&format!("whisperer {number}")).await;
            let habits = Habits { room: None, ..scene.habits(number, loud * 2) };
            scene.joins(&person, &person.via(&doors[number % 2]), habits).await;
        }
        if matches!(fault, Fault::GatewayKilled | Fault::GatewayCrashed | Fault::GatewayFrozen) {
            for number in 0..3 {
                let person = scene.stack.person(&format!("leaver {number}")).await;
                let comeback = Comeback::Never;
                let habits = Habits { comeback, ..scene.habits(number, loud) };
                scene.joins(&person, &person.via(&doors[0]), habits).await;
                scene.leaving.push(person);
            }
        }
        scene
    }

    fn on(stack: Stack, fault: Fault, moment: Moment, seed: u64) -> Self {
        let (rng, crowd) = (StdRng::seed_from_u64(seed), Crowd::new(seed));
        let (anchors, rooms, people) = (Vec::new(), Vec::new(), Vec::new());
        let (leaving, inside, notes) = (Vec::new(), Vec::new(), Vec::new());
        Self { fault, moment, rng, stack, crowd, anchors, rooms, people, leaving, inside, notes }
    }

    /// And has somebody away whom people write to.
    async fn opens_rooms(&mut self, count: usize) {
        for number in 0..count {
            let anchor = self.stack.anchor(&format!("anchor {number}")).await;
            self.rooms.push(anchor.opens_room().await);
            self.anchors.push(anchor);
            self.inside.push(0);
        }
        let away = self.stack.person("somebody away").await;
        self.crowd.knows(&away);
        self.people.push(away);
    }

    fn habits(&self, number: usize, pause: Duration) -> Habits {
        let bare = matches!(
            self.fault,
            Fault::GatewayKilled
                | Fault::GatewayCrashed
                | Fault::GatewayFrozen
                | Fault::GatewayFaint
                | Fault::GatewayCutOff
                | Fault::GatewayIsolated
                | Fault::StruckTwice
                | Fault::EverythingKilled
        );
        Habits {
            room: Some(self.rooms[number % self.rooms.len()]),
            device: if (number + number / 6).is_multiple_of(3) {
                Device::Phone
            } else {
                Device::Browser
            },
            comeback: match number / 12 {
                1.. if bare => Comeback::Bare,
                _ => Comeback::WithCursor,
            },
            pause,
        }
    }

    async fn joins(&mut self, person: &Person, through: &Person, habits: Habits) {
        if let (Some(room), true) = (habits.room, habits.comeback != Comeback::Never) {
            let place = self.rooms.iter().position(|one| *one == room).expect("one of ours");
            self.inside[place] += 1;
        }
        self.crowd.joined_by(person, through, habits).await;
        self.people.push(person.clone());
    }
}

/// The faults.
impl Scene {
    async fn plays(mut self) {
        self.the_moment_comes().await;
        match self.fault {
            Fault::GatewayKilled => self.kills_a_gateway().await,
            Fault::GatewayCrashed => self.crashes_a_gateway().await,
            Fault::GatewayFrozen => self.freezes_a_gateway().await,
            Fault::GatewayFaint => self.lets_a_gateway_faint().await,
            Fault::WorkersKilled => self.kills_workers().await,
            Fault::WorkerFrozen => self.freezes_a_worker().await,
            Fault::BusKilled => self.kills_nats(Duration::from_secs(3)).await,
            Fault::BusCrashed => self.kills_nats(Duration::ZERO).await,
            Fault::BusAway => self.kills_nats(Duration::from_secs(8)).await,
            Fault::BusGone => self.takes_nats_away().await,
            Fault::LeaderKilled => self.kills_the_leader().await,
            Fault::LeaderFrozen => self.freezes_the_leader().await,
            Fault::LeaderReplaced => self.replaces_the_leader().await,
            Fault::ServersReplaced => self.replaces_servers().await,
            Fault::GatewayUnplugged => self.unplugs_a_gateway().await,
            Fault::GatewayCutOff => self.cuts_a_gateway_off().await,
            Fault::GatewayIsolated => self.isolates_a_gateway().await,
            Fault::WorkerCutOff => self.cuts_a_worker_off().await,
            Fault::WorkersChanged => self.changes_workers().await,
            Fault::StruckTwice => self.strikes_twice().await,
            Fault::GatewayDrained => self.drains_a_gateway().await,
            Fault::RollingRestart => self.replaces_everything().await,
            Fault::EverythingKilled => self.kills_everything().await,
            Fault::PowerCut => unreachable!("it has a stage of its own"),
        }
        sleep(AFTERMATH).await; // the load after it
        self.everybody_is_back().await;
        self.no_ghost_is_inside().await;
        self.settles().await;
        self.crowd.reads_up(&self.rooms, &self.people).await;
        self.crowd.goes_home().await;
        let verdict = judge(&self.crowd.record.so_far());
        self.tells(&verdict);
        self.is_acquitted(&verdict);
        self.stack.stop().await;
    }

    /// The talk has been going on for a while, and some message is just there.
    async fn the_moment_comes(&mut self) {
        sleep(Duration::from_millis(self.rng.random_range(1000..2000))).await; // the load before it
        let record = &self.crowd.record;
        match self.moment {
            Moment::BeforeStore => record.said.notified().await,
            Moment::AfterStore => record.stored.notified().await,
            Moment::BeforeAck => {
                self.crowd.acks.send_replace(false);
                sleep(Duration::from_millis(250)).await; // so much is owed
            }
        }
    }

    /// It has struck; acknowledgements that were held back go out where they still can.
    fn the_moment_is_over(&self) -> Instant {
        self.crowd.acks.send_replace(true);
        Instant::now()
    }

    fn strikes(&self, addresses: Vec<String>) {
        self.crowd.record.keeps(What::Struck { addresses });
    }

    async fn kills_a_gateway(&mut self) {
        self.strikes(self.stack.addresses(GATEWAY));
        self.stack.kills(GATEWAY).await;
        let since = self.the_moment_is_over();
        self.the_leaving_are_offline(since).await;
        self.no_ghost_is_inside().await;
        self.stack.revives(GATEWAY).await;
    }

    /// As a supervisor does it: the id is back before its lease has expired.
    async fn crashes_a_gateway(&mut self) {
        self.strikes(self.stack.addresses(GATEWAY));
        self.stack.kills(GATEWAY).await;
        let since = self.the_moment_is_over();
        let addresses = self.stack.addresses(GATEWAY);
        self.crowd.record.keeps(What::Restarted { addresses });
        self.stack.revives(GATEWAY).await;
        self.the_leaving_are_offline(since).await;
    }

    async fn freezes_a_gateway(&mut self) {
        let frozen = self.stack.addresses(GATEWAY);
        self.strikes(frozen.clone());
        self.stack.freezes(GATEWAY);
        let since = self.the_moment_is_over();
        self.the_leaving_are_offline(since).await;
        let twelve = Duration::from_secs(12);
        sleep(twelve.saturating_sub(since.elapsed())).await; // the fault itself
        self.stack.thaws(GATEWAY);
        let thawed = Instant::now();
        let record = self.crowd.record.clone();
        eventually("its connections are closed", PATIENCE, async || {
            open_lines(&record.so_far(), &frozen) == 0
        })
        .await;
        self.notes.push(format!("closed {:?} after it woke up", thawed.elapsed()));
        for code in closed_with(&record.so_far(), &frozen) {
            assert!(matches!(code, None | Some(1012)), "a browser was closed with {code:?}");
        }
    }

    /// Whether it is declared dead meanwhile is left to chance.
    async fn lets_a_gateway_faint(&mut self) {
        self.strikes(self.stack.addresses(GATEWAY));
        self.stack.freezes(GATEWAY);
        let since = self.the_moment_is_over();
        let cutoff = self.crowd.record.now() + Duration::from_secs(1);
        sleep(Duration::from_millis(self.rng.random_range(4000..9000))).await; // the fault itself
        self.stack.thaws(GATEWAY);
        self.flows_again(since, cutoff).await;
    }

    async fn kills_workers(&mut self) {
        for number in 0..3 {
            let victim = ("fanout", number % 2);
            if 0 < number {
                self.the_moment_comes().await;
            }
            self.stack.kills(victim).await;
            let since = self.the_moment_is_over();
            let cutoff = self.crowd.record.now() + Duration::from_secs(1);
            self.stack.revives(victim).await;
            self.flows_again(since, cutoff).await;
        }
    }

    async fn freezes_a_worker(&mut self) {
        self.stack.freezes(("fanout", 0));
        let since = self.the_moment_is_over();
        let cutoff = self.crowd.record.now() + Duration::from_secs(1);
        sleep(Duration::from_secs(8)).await; // the fault itself
        self.stack.thaws(("fanout", 0));
        self.flows_again(since, cutoff).await;
    }

    async fn kills_nats(&mut self, away: Duration) {
        self.stack.kills_nats().await;
        let since = self.the_moment_is_over();
        sleep(away).await; // the fault itself
        self.stack.revives_nats().await;
        let cutoff = self.crowd.record.now() + Duration::from_secs(1);
        self.flows_again(since, cutoff).await;
        self.nobody_was_cut_off();
    }

    /// Until everybody is sent away.
    async fn takes_nats_away(&mut self) {
        self.stack.kills_nats().await;
        let since = self.the_moment_is_over();
        let record = self.crowd.record.clone();
        eventually("everybody is sent away", GIVEN_UP, async || {
            open_lines(&record.so_far(), &[]) == 0
        })
        .await;
        self.notes.push(format!("sent away after {:?}", since.elapsed()));
        let both = [self.stack.addresses(GATEWAY), self.stack.addresses(("gateway", 1))].concat();
        self.browsers_were_told(&both, 3014);
        self.stack.revives_nats().await;
        let cutoff = self.crowd.record.now() + Duration::from_secs(1);
        self.flows_again(Instant::now(), cutoff).await;
    }

    async fn kills_the_leader(&mut self) {
        let leader = self.stack.leader_of(LOG, None).await;
        self.stack.kills_server(leader).await;
        self.the_log_has_another_leader(leader).await;
        self.stack.revives_server(leader).await;
        self.nobody_was_cut_off();
    }

    async fn freezes_the_leader(&mut self) {
        let leader = self.stack.leader_of(LOG, None).await;
        self.stack.freezes_server(leader);
        self.the_log_has_another_leader(leader).await;
        self.stack.thaws_server(leader);
        self.nobody_was_cut_off();
    }

    async fn replaces_the_leader(&mut self) {
        let leader = self.stack.leader_of(LOG, None).await;
        self.stack.ends_server(leader).await;
        self.the_log_has_another_leader(leader).await;
        self.stack.revives_server(leader).await;
        self.nobody_was_cut_off();
    }

    /// As a cluster is upgraded.
    async fn replaces_servers(&mut self) {
        let since = self.the_moment_is_over(); // every one of them has moments enough
        for place in 0..3 {
            self.notes.push(format!("server {place} from {:?}", self.crowd.record.now()));
            self.stack.ends_server(place).await;
            self.stack.revives_server(place).await;
        }
        let cutoff = self.crowd.record.now() + Duration::from_secs(1);
        self.flows_again(since, cutoff).await;
        self.nobody_was_cut_off();
    }

    async fn the_log_has_another_leader(&mut self, lost: usize) {
        let since = self.the_moment_is_over();
        let mut leader = lost;
        eventually("the log has another leader", FLOW, async || {
            leader = self.stack.leader_of(LOG, Some(lost)).await;
            leader != lost
        })
        .await;
        self.notes.push(format!("another leader after {:?}", since.elapsed()));
        let cutoff = self.crowd.record.now() + Duration::from_secs(1);
        self.flows_again(since, cutoff).await;
    }

    /// Its connections break and it finds no other, for less time than its lease lasts.
    async fn unplugs_a_gateway(&mut self) {
        self.stack.wire_becomes(GATEWAY, Wire::Cut);
        let since = self.the_moment_is_over();
        let cutoff = self.crowd.record.now() + Duration::from_secs(1);
        eventually("it is not ready", PATIENCE, async || !self.stack.says_ready(GATEWAY).await)
            .await;
        let away = Duration::from_millis(self.rng.random_range(1000..3500));
        sleep(away.saturating_sub(since.elapsed())).await; // the fault itself
        self.stack.wire_becomes(GATEWAY, Wire::Whole);
        self.flows_again(since, cutoff).await;
        eventually("it is ready", PATIENCE, async || self.stack.says_ready(GATEWAY).await).await;
        self.nobody_was_cut_off();
    }

    /// Packets are dropped, until long after it is declared dead.
    async fn cuts_a_gateway_off(&mut self) {
        let lost = self.stack.addresses(GATEWAY);
        self.strikes(lost.clone());
        self.stack.wire_becomes(GATEWAY, Wire::Silent);
        let since = self.the_moment_is_over();
        eventually("it is not ready", PATIENCE, async || !self.stack.says_ready(GATEWAY).await)
            .await;
        self.notes.push(format!("not ready after {:?}", since.elapsed()));
        let twelve = Duration::from_secs(12);
        sleep(twelve.saturating_sub(since.elapsed())).await; // the fault itself
        self.nobody_was_cut_off();
        self.stack.wire_becomes(GATEWAY, Wire::Whole);
        let mended = Instant::now();
        let record = self.crowd.record.clone();
        let told = |record: &[checker::Entry]| closed_with(record, &lost).len();
        let there = lines_to(&record.so_far(), &lost);
        eventually("its connections are closed", FLOW, async || told(&record.so_far()) == there)
            .await;
        self.notes.push(format!("closed {:?} after it was mended", mended.elapsed()));
        self.browsers_were_told(&lost, 1012);
        eventually("it is ready", FLOW, async || self.stack.says_ready(GATEWAY).await).await;
    }

    /// The same, until its people are better off elsewhere.
    async fn isolates_a_gateway(&mut self) {
        let lost = self.stack.addresses(GATEWAY);
        self.strikes(lost.clone());
        self.stack.wire_becomes(GATEWAY, Wire::Silent);
        let since = self.the_moment_is_over();
        let record = self.crowd.record.clone();
        let there = lines_to(&record.so_far(), &lost);
        eventually("its people are sent away", GIVEN_UP, async || {
            closed_with(&record.so_far(), &lost).len() == there
        })
        .await;
        self.notes.push(format!("sent away after {:?}", since.elapsed()));
        self.browsers_were_told(&lost, 3014);
        self.everybody_is_back().await;
        self.stack.wire_becomes(GATEWAY, Wire::Whole);
        eventually("it is ready", FLOW, async || self.stack.says_ready(GATEWAY).await).await;
    }

    async fn cuts_a_worker_off(&mut self) {
        self.stack.wire_becomes(WORKER, Wire::Silent);
        let since = self.the_moment_is_over();
        let cutoff = self.crowd.record.now() + Duration::from_secs(1);
        sleep(Duration::from_secs(8)).await; // the fault itself
        assert!(!self.stack.says_ready(WORKER).await, "it cannot be ready");
        self.flows_again(since, cutoff).await;
        self.stack.wire_becomes(WORKER, Wire::Whole);
        eventually("it is ready", FLOW, async || self.stack.says_ready(WORKER).await).await;
    }

    /// Two more, then the two of the beginning go, in order.
    async fn changes_workers(&mut self) {
        self.the_moment_is_over(); // every one of them has moments enough
        for _ in 0..2 {
            self.stack.gains("fanout").await;
            sleep(AFTERMATH).await; // the load between them
        }
        for _ in 0..2 {
            self.stack.loses(WORKER).await;
            sleep(AFTERMATH).await; // the load between them
        }
    }

    /// While its lease still lasts, or its queue is being taken over.
    async fn strikes_twice(&mut self) {
        self.strikes(self.stack.addresses(GATEWAY));
        self.stack.kills(GATEWAY).await;
        let since = self.the_moment_is_over();
        let cutoff = self.crowd.record.now() + Duration::from_secs(1);
        let later = Duration::from_millis(self.rng.random_range(500..8000));
        sleep(later).await; // the first one alone
        let second = ["a worker", "presence", "nats"][self.rng.random_range(0..3)];
        self.notes.push(format!("{second} {later:?} later"));
        match second {
            "a worker" => {
                self.stack.kills(WORKER).await;
                self.stack.revives(WORKER).await;
            }
            "presence" => {
                self.stack.kills(("presence", 0)).await;
                self.stack.revives(("presence", 0)).await;
            }
            _ => {
                self.stack.kills_nats().await;
                sleep(Duration::from_secs(1)).await; // the second one itself
                self.stack.revives_nats().await;
            }
        }
        self.flows_again(since, cutoff).await;
        self.stack.revives(GATEWAY).await;
    }

    async fn drains_a_gateway(&mut self) {
        self.stack.ends(GATEWAY).await;
        self.the_moment_is_over();
        self.stack.revives(GATEWAY).await;
    }

    async fn replaces_everything(&mut self) {
        self.the_moment_is_over(); // every one of them has moments enough
        for victim in [("fanout", 0), ("fanout", 1), ("api", 0)] {
            self.replaces(victim).await;
        }
        self.notes.push(format!("nats from {:?}", self.crowd.record.now()));
        self.stack.replaces_nats().await;
        for victim in [("gateway", 0), ("gateway", 1)] {
            self.replaces(victim).await;
        }
    }

    async fn replaces(&mut self, victim: (&'static str, usize)) {
        self.notes.push(format!("{victim:?} from {:?}", self.crowd.record.now()));
        self.stack.ends(victim).await;
        self.stack.revives(victim).await;
    }

    async fn kills_everything(&mut self) {
        let both = [self.stack.addresses(GATEWAY), self.stack.addresses(("gateway", 1))].concat();
        self.strikes(both.clone());
        self.stack.kills_everything().await;
        let since = self.the_moment_is_over();
        self.crowd.record.keeps(What::Restarted { addresses: both });
        self.stack.revives_everything().await;
        self.notes.push(format!("ready again after {:?}", since.elapsed()));
    }
}

/// What is waited for.
impl Scene {
    fn nobody_was_cut_off(&self) {
        let cut = self.crowd.record.so_far().into_iter();
        let cut: Vec<_> = cut.filter(|entry| matches!(entry.what, What::Cut { .. })).collect();
        assert!(cut.is_empty(), "connections stay: {cut:?}");
    }

    /// Phones are not told why.
    fn browsers_were_told(&self, addresses: &[String], expected: u16) {
        for code in closed_with(&self.crowd.record.so_far(), addresses) {
            let right = code.is_none_or(|code| code == expected);
            assert!(right, "a browser was closed with {code:?}");
        }
    }

    async fn the_leaving_are_offline(&mut self, since: Instant) {
        let asking = self.anchors[0].clone();
        for person in self.leaving.clone() {
            let what = format!("{} is offline", person.name);
            let left = OFFLINE.saturating_sub(since.elapsed());
            eventually(&what, left, async || !asking.sees_online(&person).await).await;
        }
        self.notes.push(format!("offline after {:?}", since.elapsed()));
    }

    /// Everybody heard what was receipted up to `cutoff`.
    async fn flows_again(&mut self, since: Instant, cutoff: Duration) {
        let record = self.crowd.record.clone();
        eventually("messages flow again", FLOW, async || {
            let mut so_far = record.so_far();
            let late = |what: &What| matches!(what, What::Answered { outcome: Ok(_), .. });
            so_far.retain(|entry| entry.at <= cutoff || !late(&entry.what));
            cutoff < record.now() && judge(&so_far).count("lost") == 0
        })
        .await;
        self.crowd.is_well();
        self.notes.push(format!("flows again after {:?}", since.elapsed()));
    }

    async fn everybody_is_back(&mut self) {
        let record = self.crowd.record.clone();
        let expected = self.people.len() - 1 - self.leaving.len(); // one never came
        eventually("everybody is connected", SETTLE, async || {
            open_lines(&record.so_far(), &[]) == expected
        })
        .await;
        self.crowd.is_well();
    }

    async fn no_ghost_is_inside(&mut self) {
        let began = Instant::now();
        for (place, room) in self.rooms.iter().enumerate() {
            let (anchor, inside) = (&self.anchors[place], self.inside[place]);
            eventually(&format!("{inside} are inside {room}"), SETTLE, async || {
                anchor.counts(room).await == inside
            })
            .await;
        }
        self.notes.push(format!("no ghosts after {:?}", began.elapsed()));
    }

    /// Nobody says anything new; what is under way arrives.
    async fn settles(&mut self) {
        self.crowd.falls_silent();
        let deadline = Instant::now() + SETTLE;
        let open = |verdict: &Verdict| {
            ["unstored", "lost", "not repeated"].iter().any(|kind| 0 < verdict.count(kind))
        };
        // Not `eventually`: what is still open in the end is told by the verdict.
        while open(&judge(&self.crowd.record.so_far())) && Instant::now() < deadline {
            sleep(Duration::from_millis(250)).await;
            self.crowd.is_well();
        }
    }

    fn tells(&self, verdict: &Verdict) {
        let Verdict { receipted, first_hearings, repeats, resumes, taken_over, .. } = verdict;
        let Verdict { refused, unanswered, slowest, slowest_at, longest_away, .. } = verdict;
        let lost = verdict.count("lost") + verdict.count("whisper lost");
        let notes = self.notes.join(", ");
        eprintln!(
            "{:?} {:?}: {receipted} receipted, {lost} lost, {} wrongs; {first_hearings} heard, \
             {repeats} repeats, {resumes} resumes, {taken_over} taken over, refused {refused:?}, \
             {unanswered} unanswered, slowest {slowest:?} at {slowest_at:?}, longest away {longest_away:?}; {notes}",
            self.fault,
            self.moment,
            verdict.wrongs.len(),
        );
    }

    fn is_acquitted(&self, verdict: &Verdict) {
        let Verdict { wrongs, receipted, unanswered, longest_away, .. } = verdict;
        if !wrongs.is_empty() {
            explains(verdict, &self.crowd.record.so_far());
            panic!("{} wrongs, the first: {:#?}", wrongs.len(), &wrongs[..wrongs.len().min(12)]);
        }
        assert!(100 < *receipted, "nobody talked: {receipted}");
        if matches!(
            self.fault,
            Fault::GatewayDrained | Fault::RollingRestart | Fault::WorkersChanged
        ) {
            assert!(*longest_away <= AWAY, "somebody had to wait for {longest_away:?}");
            assert!(verdict.slowest <= AWAY, "a message came after {:?}", verdict.slowest);
        }
        if self.fault != Fault::GatewayFrozen {
            assert_eq!(*unanswered, 0, "a sender on a living connection heard nothing for 12 s");
        }
    }
}

/// Everything the record has about the first wrongs.
fn explains(verdict: &Verdict, record: &[checker::Entry]) {
    for (kind, evidence) in verdict.wrongs.iter().take(3) {
        let words = evidence.split(|c: char| !c.is_alphanumeric() && c != '-');
        let texts: BTreeSet<&str> = words.filter(|word| word.starts_with("f-")).collect();
        eprintln!("{kind}: {evidence}");
        for entry in record {
            let shown = format!("{entry:?}");
            if texts.iter().any(|text| shown.contains(&format!("\"{text}\""))) {
                eprintln!("    {shown}");
            }
        }
    }
    for entry in record {
        if matches!(entry.what, What::Entered { .. } | What::Cut { .. } | What::Struck { .. }) {
            eprintln!("    {entry:?}");
        }
    }
}

/// Connections that are open, to these addresses; to any, where none is named.
fn open_lines(record: &[checker::Entry], addresses: &[String]) -> usize {
    let mut open = BTreeSet::new();
    for entry in record {
        match &entry.what {
            What::Entered { line, address, .. }
                if addresses.is_empty() || addresses.contains(address) =>
            {
                open.insert(line);
            }
            What::Cut { line, .. } => drop(open.remove(line)),
            _ => {}
        }
    }
    open.len()
}

/// Connections to these addresses there ever were.
fn lines_to(record: &[checker::Entry], addresses: &[String]) -> usize {
    let there = |entry: &&checker::Entry| matches!(&entry.what, What::Entered { address, .. } if addresses.contains(address));
    record.iter().filter(there).count()
}

/// The close codes of connections to these addresses.
fn closed_with(record: &[checker::Entry], addresses: &[String]) -> Vec<Option<u16>> {
    let mut lines = BTreeSet::new();
    let mut codes = Vec::new();
    for entry in record {
        match &entry.what {
            What::Entered { line, address, .. } if addresses.contains(address) => {
                lines.insert(line);
            }
            What::Cut { line, code, .. } if lines.contains(line) => codes.push(*code),
            _ => {}
        }
    }
    codes
}

fn surely<T, E: Debug>(done: Result<T, E>) -> T {
    done.expect("the disk does as it did at first")
}

/// `durable` survives the end of everything that was not on the disk yet.
async fn power_is_cut(moment: Moment, seed: u64) {
    let mut image = match Image::new() {
        Ok(image) => image,
        Err(why) => {
            eprintln!("SKIPPED: no power was cut, NOTHING about `durable` was tested here: {why}");
            return;
        }
    };
    let settings = [FAST, &[("QIYU_PROFILE", "durable")]].concat();
    let stack = Stack::up_on(|dir| surely(image.mount(dir)), &settings).await;
    let mut scene = Scene::on(stack, Fault::PowerCut, moment, seed);
    scene.opens_rooms(2).await;
    for number in 0..8 {
        let person = scene.stack.person(&format!("member {number}")).await;
        let pause = Duration::from_millis(100);
        let habits = Habits { comeback: Comeback::Never, ..scene.habits(number, pause) };
        scene.joins(&person, &person, habits).await;
    }
    sleep(Duration::from_secs(2)).await; // more of the load before it
    scene.the_moment_comes().await;
    scene.stack.freezes_its_nats();
    surely(image.is_copied());
    scene.stack.is_killed().await;
    scene.crowd.goes_home().await;
    let dir = scene.stack.data_dir();
    surely(image.unmount());
    surely(image.mount(Path::new(&dir)));

    scene.stack.starts_again().await;
    let mut people = Vec::new();
    for person in &scene.people {
        people.push(scene.stack.person_numbered(&person.name, person.id).await);
    }
    scene.crowd.reads_up(&scene.rooms, &people).await;
    let verdict = judge(&scene.crowd.record.so_far());
    scene.tells(&verdict);
    scene.is_acquitted(&verdict);
    let (room, last) = (scene.rooms[0], scene.crowd.record.last_msg_id());
    let after = people[1].ws_into(&room).await.says_surely(&room, "light again").await;
    assert!(last < after, "{after} was given before, to what was receipted up to {last}");
    scene.stack.stop().await;
    surely(image.unmount());
}
