//! The checker can fail: each test damages a good record in one way.

use super::*;

const ROOM: u64 = 7;

/// A record with a clock that goes on by a second with every entry.
#[derive(Default)]
struct Tale(Vec<Entry>);

impl Tale {
    fn and(mut self, what: What) -> Self {
        let at = Duration::from_secs(self.0.len() as u64);
        self.0.push(Entry { at, what });
        self
    }

    fn enters(self, line: u64, user: u64, position: u64) -> Self {
        self.comes(line, user, position, None, None)
    }

    fn comes(
        self,
        line: u64,
        user: u64,
        position: u64,
        cursor: Option<u64>,
        recovered: Option<bool>,
    ) -> Self {
        let (room, address) = (Some(ROOM), "g1".to_owned());
        self.and(What::Entered { line, user, address, room, position, cursor, recovered })
    }

    fn stores(self, user: u64, text: &str, to: To, msg_id: u64) -> Self {
        let text = text.to_owned();
        let said = What::Said { user, text: text.clone(), to };
        self.and(said).and(What::Answered { user, text, outcome: Ok(msg_id) })
    }

    fn says(self, text: &str, msg_id: u64) -> Self {
        self.stores(1, text, To::Room(ROOM), msg_id)
    }

    fn hears(self, line: u64, msg_id: u64, text: &str) -> Self {
        self.and(What::Heard { line, to: To::Room(ROOM), msg_id, text: text.to_owned() })
    }

    fn acks(self, line: u64, msg_id: u64) -> Self {
        self.and(What::Acked { line, msg_id })
    }

    fn cut(self, line: u64) -> Self {
        self.and(What::Cut { line, code: None, retry: Duration::ZERO })
    }

    fn dies(self, address: &str) -> Self {
        self.and(What::Struck { addresses: vec![address.to_owned()] })
    }

    fn kinds(&self) -> Vec<&'static str> {
        let verdict = judge(&self.0);
        verdict.wrongs.iter().map(|(kind, _)| *kind).collect()
    }
}

/// User 1 talks, user 2 listens on line 2.
fn good() -> Tale {
    let tale = Tale::default().enters(1, 1, 10).enters(2, 2, 11);
    tale.says("a", 20).says("b", 30).hears(2, 20, "a").hears(2, 30, "b")
}

#[test]
fn a_good_record_is_good() {
    let repeated = good().hears(2, 20, "a");
    let verdict = judge(&repeated.0);
    assert!(verdict.wrongs.is_empty(), "{:?}", verdict.wrongs);
    let counts = (verdict.receipted, verdict.first_hearings, verdict.repeats);
    assert_eq!(counts, (2, 2, 1));
}

#[test]
fn a_message_that_one_did_not_get_is_lost() {
    let tale = Tale::default().enters(1, 1, 10).enters(2, 2, 11).says("a", 20).says("b", 30);
    assert_eq!(tale.kinds(), ["lost", "lost"]);
    assert_eq!(good().says("c", 40).kinds(), ["lost"]);
}

#[test]
fn what_was_said_before_the_join_is_not_owed_and_must_not_come() {
    assert!(good().enters(3, 3, 35).kinds().is_empty());
    assert_eq!(good().enters(3, 3, 35).hears(3, 30, "b").kinds(), ["too early"]);
}

#[test]
fn who_was_cut_off_has_no_hole_below_the_last_thing_heard() {
    let tale = Tale::default().enters(1, 1, 10).enters(2, 2, 11).says("a", 20).says("b", 30);
    assert!(tale.cut(2).kinds().is_empty());
    let tale = Tale::default().enters(1, 1, 10).enters(2, 2, 11).says("a", 20).says("b", 30);
    assert_eq!(tale.hears(2, 30, "b").cut(2).kinds(), ["lost"]);
}

#[test]
fn a_resume_that_leaves_something_out_loses_it() {
    let back = good().says("c", 40).cut(2).comes(3, 2, 45, Some(30), Some(true));
    assert_eq!(back.kinds(), ["lost"]);
    let back = good().says("c", 40).cut(2).comes(3, 2, 45, Some(30), Some(true));
    let verdict = judge(&back.hears(3, 40, "c").0);
    assert_eq!((verdict.wrongs.len(), verdict.resumes), (0, 1));
}

#[test]
fn a_resume_that_could_have_been_must_be() {
    let back = good().cut(2).comes(3, 2, 45, Some(30), Some(false));
    assert_eq!(back.kinds(), ["not recovered"]);
    let ahead = good().cut(2).comes(3, 2, 45, Some(300), Some(false));
    assert!(ahead.kinds().is_empty(), "the log lost its tail");
}

#[test]
fn a_dead_gateway_owes_what_was_not_acknowledged() {
    let dead = || good().acks(2, 20).says("c", 40).dies("g1").cut(2).enters(3, 2, 45);
    assert_eq!(dead().kinds(), ["not repeated", "lost"]);
    assert_eq!(dead().hears(3, 30, "b").kinds(), ["lost"]);
    let verdict = judge(&dead().hears(3, 40, "c").hears(3, 30, "b").0);
    assert_eq!((verdict.wrongs.len(), verdict.taken_over), (0, 2));
    let living = good().says("c", 40).dies("g2").cut(2).enters(3, 2, 45);
    assert!(living.kinds().is_empty(), "nobody died here");
}

#[test]
fn a_dead_gateway_owes_nothing_that_came_after_its_end() {
    let tale = good().acks(2, 20).acks(2, 30).dies("g1").cut(2);
    let late = tale.acks(2, 20).acks(2, 20).acks(2, 20).says("c", 40).enters(3, 2, 45);
    assert!(late.kinds().is_empty());
}

#[test]
fn a_gateway_that_is_started_again_owes_nothing_that_came_after_that() {
    let again = What::Restarted { addresses: vec!["g1".to_owned()] };
    let tale = good().acks(2, 20).acks(2, 30).dies("g1").and(again).cut(2);
    assert!(tale.says("c", 40).enters(3, 2, 45).kinds().is_empty());
}

#[test]
fn disorder_is_seen() {
    let tale = Tale::default().enters(1, 1, 10).enters(2, 2, 11).says("a", 20).says("b", 30);
    assert_eq!(tale.hears(2, 30, "b").hears(2, 20, "a").kinds(), ["disordered"]);
}

#[test]
fn what_nobody_said_is_a_phantom() {
    assert_eq!(good().hears(2, 50, "x").kinds(), ["phantom"]);
    let list = vec![(20, "a".to_owned()), (30, "b".to_owned()), (50, "x".to_owned())];
    assert_eq!(good().and(What::History { room: ROOM, list }).kinds(), ["phantom"]);
    let list = vec![(50, "x".to_owned())];
    assert_eq!(good().and(What::Waiting { user: 2, list }).kinds(), ["phantom"]);
}

#[test]
fn what_comes_to_the_wrong_place_is_seen() {
    let elsewhere = good().and(What::Said { user: 1, text: "c".to_owned(), to: To::Room(8) });
    let answered = What::Answered { user: 1, text: "c".to_owned(), outcome: Ok(40) };
    assert_eq!(elsewhere.and(answered).hears(2, 40, "c").kinds(), ["misled"]);
    let to = To::User(3);
    let tale = good().stores(1, "c", to, 40);
    let heard = What::Heard { line: 2, to, msg_id: 40, text: "c".to_owned() };
    assert_eq!(tale.and(heard).kinds(), ["misled", "whisper lost"]);
}

#[test]
fn ones_own_words_do_not_come_back() {
    assert_eq!(good().hears(1, 20, "a").kinds(), ["echo"]);
}

#[test]
fn two_ids_of_one_message_are_seen() {
    assert_eq!(good().hears(2, 31, "b").kinds(), ["doubled"]);
    let again = What::Answered { user: 1, text: "b".to_owned(), outcome: Ok(31) };
    assert!(good().and(again).kinds().contains(&"doubled"));
    let other = What::Said { user: 1, text: "c".to_owned(), to: To::Room(ROOM) };
    let same = What::Answered { user: 1, text: "c".to_owned(), outcome: Ok(30) };
    assert!(good().and(other).and(same).kinds().contains(&"doubled"));
    let list = vec![(20, "a".to_owned()), (30, "b".to_owned()), (31, "b".to_owned())];
    assert_eq!(good().and(What::History { room: ROOM, list }).kinds(), ["doubled"]);
}

#[test]
fn the_history_must_have_everything_in_order() {
    let list = vec![(30, "b".to_owned())];
    assert_eq!(good().and(What::History { room: ROOM, list }).kinds(), ["lost"]);
    let list = vec![(30, "b".to_owned()), (20, "a".to_owned())];
    assert_eq!(good().and(What::History { room: ROOM, list }).kinds(), ["disordered"]);
}

#[test]
fn a_whisper_is_heard_or_waits() {
    let said = || good().stores(1, "w", To::User(9), 40);
    assert_eq!(said().kinds(), ["whisper lost"]);
    let list = vec![(40, "w".to_owned())];
    assert!(said().and(What::Waiting { user: 9, list }).kinds().is_empty());
    let heard = What::Heard { line: 9, to: To::User(9), msg_id: 40, text: "w".to_owned() };
    assert!(said().enters(9, 9, 41).and(heard).kinds().is_empty());
}

#[test]
fn refusals_and_silence_are_seen() {
    let refused = What::Answered { user: 1, text: "b".to_owned(), outcome: Err(4005) };
    assert_eq!(good().and(refused).kinds(), ["refused"]);
    let busy = What::Answered { user: 1, text: "b".to_owned(), outcome: Err(5000) };
    assert!(good().and(busy).kinds().is_empty());
    let said = What::Said { user: 1, text: "c".to_owned(), to: To::Room(ROOM) };
    assert_eq!(good().and(said).kinds(), ["unstored"]);
}
