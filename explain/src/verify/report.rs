//! The report of a verification, as text and as JSON.

use std::{collections::BTreeMap, fmt::Write as _};

use qiyu_schema::MsgId;
use serde::{Serialize, Serializer};

use super::{
    accounting::{AccountingReport, RoomSums},
    divergence::Divergence,
    key::Projection,
    live::Unchecked,
};
use crate::{text::plural, timestamp::date_time};

/// Differences and rooms that are printed; the JSON form has all.
const LINES_MAX: usize = 50;

/// The result of a verification.
#[derive(Debug, Serialize)]
pub(super) struct VerifyReport {
    /// The last applied event.
    pub(super) position: MsgId,
    pub(super) events: u64,
    pub(super) took_ms: u64,
    /// Number of compared items by projection.
    pub(super) checked: BTreeMap<Projection, u64>,
    pub(super) differences: Vec<Difference>,
    /// Projections that could not be compared, and the reasons.
    pub(super) unchecked: Unchecked,
    pub(super) conservation: AccountingReport,
}

impl Default for VerifyReport {
    fn default() -> Self {
        Self {
            position: MsgId::at(0),
            events: 0,
            took_ms: 0,
            checked: BTreeMap::new(),
            differences: Vec::new(),
            unchecked: Unchecked::new(),
            conservation: AccountingReport::default(),
        }
    }
}

/// One item that differs from the log.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Difference {
    #[serde(serialize_with = "name")]
    pub(super) projection: Projection,
    pub(super) key: String,
    /// `None`: it is absent.
    pub(super) live: Option<String>,
    /// `None`: it should be absent.
    pub(super) log: Option<String>,
    pub(super) detail: Option<String>,
    pub(super) parted: Option<Divergence>,
}

fn name<S: Serializer>(projection: &Projection, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(projection.name())
}

impl VerifyReport {
    pub(super) fn add_accounting(&mut self, accounting: AccountingReport) {
        self.differences.extend(accounting.breaches.iter().cloned());
        let messages = accounting.rooms.iter().map(|room| room.messages).sum::<u64>();
        self.checked.insert(Projection::Conservation, messages + accounting.direct.accepted);
        self.conservation = accounting;
    }

    pub(super) fn pretty(&self) -> String {
        let mut text = String::new();
        let mut line = |words: &str| {
            writeln!(text, "{words}").ok(); // writing to a String does not fail
        };
        let (events, position, took_ms) = (self.events, self.position, self.took_ms);
        let events = plural(events, "event");
        line(&format!("{events} folded up to {position}, in {took_ms} ms"));
        for projection in Projection::ALL {
            let of_it = self.differences.iter().filter(|d| d.projection == projection).count();
            let name = projection.name();
            match (self.unchecked.get(&projection), self.checked.get(&projection)) {
                (Some(reason), _) => line(&format!("  {name:<13}NOT CHECKED: {reason}")),
                (None, None) => {}
                (None, Some(checked)) => {
                    let verdict = match of_it {
                        0 => "as the log says".to_owned(),
                        differ => format!("{differ} DIFFER"),
                    };
                    line(&format!("  {name:<13}{checked} compared, {verdict}"));
                }
            }
        }
        for difference in self.differences.iter().take(LINES_MAX) {
            line("");
            difference.lines().iter().for_each(|words| line(words));
        }
        let more = self.differences.len().saturating_sub(LINES_MAX);
        if 0 < more {
            line(&format!("\nand {more} more; --format json lists all"));
        }
        self.accounting_lines().iter().for_each(|words| line(words));
        text
    }

    fn accounting_lines(&self) -> Vec<String> {
        let accounting = &self.conservation;
        let since = date_time(accounting.since_ms);
        let mut lines = vec![String::new(), format!("what was accepted since {since}:")];
        lines.extend(accounting.rooms.iter().take(LINES_MAX).map(room_line));
        let more = accounting.rooms.len().saturating_sub(LINES_MAX);
        if 0 < more {
            lines.push(format!("  and {more} more rooms; --format json lists all"));
        }
        let direct = &accounting.direct;
        lines.push(format!(
            "  1:1: {} = {} acknowledged + {} waiting + {} beyond the newest thousand of a user",
            direct.accepted, direct.acknowledged, direct.waiting, direct.forgotten
        ));
        if accounting.cut_off {
            lines.push("  (there was more than one run counts)".to_owned());
        }
        lines
    }
}

fn room_line(accounting: &RoomSums) -> String {
    let room = accounting.room.map_or(String::new(), |room| room.to_string());
    format!(
        "  room {room}: {} for {} = {} acknowledged + {} given up + {} left \
         + {} in flight + {} gone with a gateway; besides {} resumed, {} taken over",
        plural(accounting.messages, "message"),
        plural(accounting.accepted, "connection"),
        accounting.acknowledged,
        accounting.given_up,
        accounting.left,
        accounting.in_flight,
        accounting.gone_with_a_gateway,
        accounting.resumed,
        accounting.taken_over
    )
}

impl Difference {
    fn lines(&self) -> Vec<String> {
        if self.projection == Projection::Conservation {
            return vec![format!("{}: {}", self.key, self.live.as_deref().unwrap_or_default())];
        }
        let or_nothing =
            |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing there".to_owned());
        let mut lines = vec![
            self.key.clone(),
            format!("  is       {}", or_nothing(&self.live)),
            format!("  the log  {}", or_nothing(&self.log)),
        ];
        lines.extend(self.detail.iter().map(|detail| format!("  detail   {detail}")));
        let parted = match &self.parted {
            None => return lines,
            Some(Divergence::At { event, subject, at_ms }) => {
                format!("they part at {event} ({subject}, {})", date_time(*at_ms))
            }
            Some(Divergence::Never { event, subject, at_ms }) => format!(
                "it is nothing the log ever said; the last event about it is {event} ({subject}, \
                 {})",
                date_time(*at_ms)
            ),
            Some(Divergence::NoEvent) => "no event of the log is about it".to_owned(),
        };
        lines.push(format!("  parted   {parted}"));
        lines
    }
}
