//! What is shown: a headline and tables, the same on a terminal and as text.

use std::fmt;

use qiyu_nats::vitals::{FanoutVitals, GatewayVitals, Vitals};
use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Block, Borders, Paragraph, Row, Table as Drawn},
};

use super::reading::Reading;

/// From here on a partition takes no messages.
const LAG_BAD_MS: u64 = 2_000;
/// A lease older than this was not renewed when it should have been.
const LEASE_BAD_MS: u64 = 4_000;

/// Everything that is shown at one moment.
pub(crate) struct Board {
    headline: Vec<Cell>,
    tables: Vec<Table>,
}

struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// A text, and whether it is a bad sign.
#[derive(Clone)]
struct Cell {
    text: String,
    sign: Sign,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Fine,
    Bad,
}

impl Cell {
    fn fine(text: impl Into<String>) -> Self {
        Self { text: text.into(), sign: Sign::Fine }
    }

    fn bad_if(bad: bool, text: impl Into<String>) -> Self {
        Self { text: text.into(), sign: if bad { Sign::Bad } else { Sign::Fine } }
    }
}

impl Board {
    /// The board of `now`; without a reading before it no rate is known.
    pub(crate) fn of(shown: &str, before: Option<&Reading>, now: &Reading) -> Self {
        let pairs: Vec<Pair<'_>> =
            now.vitals.iter().map(|vitals| Pair::of(before, vitals)).collect();
        let log = now.log_rate(before);
        Self {
            headline: headline(shown, now, &pairs, log),
            tables: vec![gateways(now, &pairs), workers(&pairs), processes(&pairs), rooms(now)],
        }
    }

    /// Draws it over the whole terminal.
    pub(crate) fn draw(&self, frame: &mut Frame<'_>) {
        let heights = self.tables.iter().map(|table| {
            Constraint::Length(
                u16::try_from(table.rows.len()).unwrap_or(u16::MAX).saturating_add(2),
            )
        });
        let all = [Constraint::Length(3)].into_iter().chain(heights).chain([Constraint::Min(0)]);
        let areas = Layout::vertical(all).split(frame.area());
        let spans: Vec<Span<'_>> =
            self.headline.iter().flat_map(|c| [styled(c), "  ".into()]).collect();
        let block = Block::new().borders(Borders::BOTTOM).title("qiyu top — q quits".bold());
        frame.render_widget(Paragraph::new(Line::from(spans)).block(block), areas[0]);
        for (table, area) in self.tables.iter().zip(areas.iter().skip(1)) {
            let widths = table.widths().into_iter().map(|w| Constraint::Length(w as u16));
            let rows = table.rows.iter().map(|row| {
                let widths = table.widths();
                let cell = |(n, cell): (usize, &Cell)| styled(&aligned(n, widths[n], cell));
                Row::new(row.iter().enumerate().map(cell).collect::<Vec<_>>())
            });
            let head = table.head.iter().zip(table.widths()).enumerate();
            let head = head.map(|(n, (name, width))| aligned(n, width, &Cell::fine(*name)).text);
            let head = Row::new(head.collect::<Vec<_>>()).style(Style::new().bold().reversed());
            frame.render_widget(Drawn::new(rows, widths).header(head).column_spacing(2), *area);
        }
    }
}

fn styled(cell: &Cell) -> Span<'static> {
    match cell.sign {
        Sign::Fine => Span::raw(cell.text.clone()),
        Sign::Bad => Span::styled(cell.text.clone(), Style::new().fg(Color::Red).bold()),
    }
}

/// Names to the left, numbers to the right.
fn aligned(column: usize, width: usize, cell: &Cell) -> Cell {
    let text = match column {
        0 => format!("{:<width$}", cell.text),
        _ => format!("{:>width$}", cell.text),
    };
    Cell { text, sign: cell.sign }
}

/// As text, bad signs with a `!` behind them.
impl fmt::Display for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let marked = |cell: &Cell| match cell.sign {
            Sign::Fine => cell.clone(),
            Sign::Bad => Cell::fine(format!("{}!", cell.text)),
        };
        let headline: Vec<String> = self.headline.iter().map(|cell| marked(cell).text).collect();
        writeln!(f, "{}", headline.join("  "))?;
        for table in &self.tables {
            let rows = table.rows.iter().map(|row| row.iter().map(marked).collect());
            let table = Table { head: table.head.clone(), rows: rows.collect() };
            let widths = table.widths();
            let line = |cells: Vec<Cell>| {
                let cells = cells.iter().zip(&widths).enumerate();
                let texts: Vec<String> =
                    cells.map(|(n, (cell, width))| aligned(n, *width, cell).text).collect();
                texts.join("  ").trim_end().to_owned()
            };
            writeln!(f, "\n{}", line(table.head.iter().map(|name| Cell::fine(*name)).collect()))?;
            for row in table.rows.clone() {
                writeln!(f, "{}", line(row))?;
            }
        }
        Ok(())
    }
}

impl Table {
    fn widths(&self) -> Vec<usize> {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].text.chars().count());
            cells.chain([self.head[column].len()]).max().unwrap_or(0)
        };
        (0..self.head.len()).map(width).collect()
    }
}

/// A process now and at the look before.
struct Pair<'a> {
    before: Option<&'a Vitals>,
    now: &'a Vitals,
}

impl<'a> Pair<'a> {
    fn of(before: Option<&'a Reading>, now: &'a Vitals) -> Self {
        Self { before: before.and_then(|before| before.of(now.process)), now }
    }

    /// A count's rate by the process's own clock; `None` at the first look.
    fn rate(&self, count: impl Fn(&Vitals) -> u64) -> Option<f64> {
        let before = self.before?;
        let ms = self.now.at_ms.saturating_sub(before.at_ms).max(1);
        Some(count(self.now).saturating_sub(count(before)) as f64 * 1000.0 / ms as f64)
    }

    fn gateway_rate(&self, count: impl Fn(&GatewayVitals) -> u64) -> Option<f64> {
        self.rate(|vitals| vitals.gateway.as_ref().map_or(0, &count))
    }

    fn fanout_rate(&self, count: impl Fn(&FanoutVitals) -> u64) -> Option<f64> {
        self.rate(|vitals| vitals.fanout.as_ref().map_or(0, &count))
    }

    fn lease(&self, bucket: &str) -> Cell {
        match self.now.lease_ages_ms.get(bucket) {
            Some(age) => Cell::bad_if(LEASE_BAD_MS < *age, seconds(*age)),
            None => Cell::bad_if(true, "none"),
        }
    }
}

fn headline(shown: &str, now: &Reading, pairs: &[Pair<'_>], log: Option<f64>) -> Vec<Cell> {
    let connections: u64 = now.leased.iter().map(|gateway| gateway.connections).sum();
    let sum = |count: fn(&GatewayVitals) -> u64| {
        let rates = pairs.iter().filter(|pair| pair.now.gateway.is_some());
        rates.map(|pair| pair.gateway_rate(count)).sum::<Option<f64>>()
    };
    let bad = |name: &str, rate: Option<f64>| {
        Cell::bad_if(rate.is_some_and(|rate| 0.0 < rate), format!("{name} {}/s", number(rate)))
    };
    vec![
        Cell::fine(shown),
        match now.log {
            Some(last) => Cell::fine(format!("log at {last}, {} events/s", number(log))),
            None => Cell::bad_if(true, "log does not answer"),
        },
        Cell::bad_if(now.leased.is_empty(), format!("gateways {}", now.leased.len())),
        Cell::fine(format!("connections {connections}")),
        Cell::fine(format!("stored {}/s", number(sum(|g| g.accepted)))),
        Cell::fine(format!("delivered {}/s", number(sum(|g| g.written)))),
        bad("sent again", sum(|g| g.resent)),
        bad("given up", sum(|g| g.given_up)),
        bad("slow readers", sum(|g| g.slow)),
    ]
}

fn gateways(now: &Reading, pairs: &[Pair<'_>]) -> Table {
    let head = vec![
        "GATEWAY",
        "CONNS",
        "LOGINS/S",
        "STORED/S",
        "REFUSED/S",
        "OUT/S",
        "ACKED/S",
        "AGAIN/S",
        "GIVEN UP/S",
        "SLOW",
        "QUEUED",
        "WAITING",
        "UNSETTLED",
        "LEASE",
        "STATE",
    ];
    let mut rows = Vec::new();
    for pair in pairs {
        let Some(gateway) = &pair.now.gateway else { continue };
        let name = gateway.gateway.as_ref().map_or("(between lives)", |life| life.id.as_str());
        let rate = |count: fn(&GatewayVitals) -> u64| Cell::fine(number(pair.gateway_rate(count)));
        let bad = |count: fn(&GatewayVitals) -> u64| {
            let rate = pair.gateway_rate(count);
            Cell::bad_if(rate.is_some_and(|rate| 0.0 < rate), number(rate))
        };
        rows.push(vec![
            Cell::fine(name),
            Cell::fine(gateway.connections.to_string()),
            rate(|g| g.logins),
            rate(|g| g.accepted),
            bad(|g| g.refused),
            rate(|g| g.written),
            rate(|g| g.acknowledged),
            bad(|g| g.resent),
            bad(|g| g.given_up),
            Cell::fine(gateway.slow.to_string()),
            Cell::fine(bytes(gateway.queue_bytes)),
            Cell::bad_if(5_000 < gateway.waiting, gateway.waiting.to_string()),
            Cell::fine(gateway.pending.to_string()),
            pair.lease("gateways"),
            Cell::bad_if(gateway.draining, if gateway.draining { "draining" } else { "serving" }),
        ]);
    }
    let answered = |life| {
        let lives = pairs.iter().filter_map(|pair| pair.now.gateway.as_ref()?.gateway.as_ref());
        lives.into_iter().any(|answered| answered == life)
    };
    for gateway in now.leased.iter().filter(|gateway| !answered(&gateway.incarnation)) {
        let mut row = vec![Cell::fine("·"); head.len()];
        row[0] = Cell::fine(gateway.incarnation.id.as_str());
        row[1] = Cell::fine(gateway.connections.to_string());
        row[head.len() - 1] = Cell::bad_if(true, "silent");
        rows.push(row);
    }
    Table { head, rows }
}

fn workers(pairs: &[Pair<'_>]) -> Table {
    let head = vec![
        "FAN-OUT",
        "PARTITIONS",
        "EVENTS/S",
        "ENVELOPES/S",
        "SKIPPED/S",
        "WORST LAG",
        "IN",
        "LEASE",
    ];
    let mut rows = Vec::new();
    for pair in pairs {
        let Some(fanout) = &pair.now.fanout else { continue };
        let worst = fanout.partitions.iter().max_by_key(|(_, lag)| *lag);
        let (worst, lag) = worst.map_or(("·".to_owned(), 0), |(p, lag)| (p.to_string(), *lag));
        let skipped = pair.fanout_rate(|f| f.skipped);
        rows.push(vec![
            Cell::fine(&pair.now.name),
            Cell::fine(fanout.partitions.len().to_string()),
            Cell::fine(number(pair.fanout_rate(|f| f.events))),
            Cell::fine(number(pair.fanout_rate(|f| f.envelopes))),
            Cell::bad_if(skipped.is_some_and(|rate| 0.0 < rate), number(skipped)),
            Cell::bad_if(LAG_BAD_MS < lag, seconds(lag)),
            Cell::fine(if lag == 0 { "·".to_owned() } else { worst }),
            pair.lease("workers"),
        ]);
    }
    Table { head, rows }
}

fn processes(pairs: &[Pair<'_>]) -> Table {
    let row = |pair: &Pair<'_>| {
        let cpu = pair.rate(|vitals| vitals.cpu_ms).map(|ms| ms / 10.0);
        vec![
            Cell::fine(&pair.now.name),
            Cell::fine(pair.now.roles.join(",")),
            Cell::fine(cpu.map_or("·".to_owned(), |percent| format!("{percent:.0} %"))),
            Cell::fine(bytes(pair.now.memory_bytes)),
            Cell::fine(&pair.now.version),
        ]
    };
    let head = vec!["PROCESS", "ROLES", "CPU", "MEMORY", "VERSION"];
    Table { head, rows: pairs.iter().map(row).collect() }
}

fn rooms(now: &Reading) -> Table {
    let row = |(hot, inside): &(qiyu_nats::vitals::HotRoom, Option<u64>)| {
        vec![
            Cell::fine(hot.room.to_string()),
            Cell::fine(hot.app.to_string()),
            Cell::fine(number(Some(hot.per_second))),
            Cell::fine(inside.map_or("·".to_owned(), |inside| inside.to_string())),
        ]
    };
    let head = vec!["HOTTEST ROOM", "APP", "MESSAGES/S", "INSIDE"];
    Table { head, rows: now.rooms.iter().map(row).collect() }
}

fn number(rate: Option<f64>) -> String {
    match rate {
        None => "·".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(rate) if rate < 10.0 => format!("{rate:.1}"),
        Some(rate) => format!("{rate:.0}"),
    }
}

fn seconds(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1000.0)
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{} KiB", bytes / 1_024),
        _ => format!("{} MiB", bytes / 1_048_576),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at_ms: u64, written: u64) -> Reading {
        let gateway = GatewayVitals {
            gateway: Some(qiyu_schema::Incarnation { id: "g1".parse().unwrap(), epoch: 5 }),
            connections: 7,
            written,
            ..GatewayVitals::default()
        };
        let fanout = FanoutVitals {
            partitions: vec![("p03".parse().unwrap(), 2_500), ("p04".parse().unwrap(), 0)],
            ..FanoutVitals::default()
        };
        let vitals = Vitals {
            process: 1,
            name: "one".into(),
            at_ms,
            gateway: Some(gateway),
            fanout: Some(fanout),
            ..Vitals::default()
        };
        Reading { vitals: vec![vitals], log: Some(at_ms), ..Reading::default() }
    }

    #[test]
    fn rates_are_by_the_clock_of_whoever_counts() {
        let (before, now) = (reading(1_000, 100), reading(3_000, 300));
        let board = Board::of("nats://h:1", Some(&before), &now).to_string();
        assert!(board.contains("delivered 100/s"), "{board}");
        let first = Board::of("nats://h:1", None, &now).to_string();
        assert!(first.contains("delivered ·/s"), "nothing to compare with: {first}");
    }

    #[test]
    fn bad_signs_are_marked() {
        let board = Board::of("nats://h:1", None, &reading(1_000, 0)).to_string();
        assert!(board.contains("2.5 s!") && board.contains("p03"), "{board}");
        assert!(board.contains("none!"), "nobody knows a lease: {board}");
    }
}
