//! Prints a window to standard output.

use std::{
    collections::VecDeque,
    io::{self, Write},
    task::Poll,
};

use anyhow::Context as _;
use qiyu_nats::log::LogEntry;
use qiyu_schema::event::Record;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::{names::DisplayNames, pace::Pace, pretty::Layout, selection::Selection};
use crate::{
    log::{
        event_view::{EventView, for_each_view},
        window::LogWindow,
    },
    text::escape_json,
    timestamp,
};

/// Entries read ahead, so that joins are shown with names from later messages.
const AHEAD: usize = 2_000;
/// Bytes written at once.
const WRITE_BYTES: usize = 64 * 1024;

/// An entry and its decoded record, if it has one.
struct Read {
    entry: LogEntry,
    record: Option<Record>,
}

/// The format of the lines.
#[derive(Debug)]
pub(crate) enum LineFormat {
    Pretty(Layout),
    Json,
}

/// The result of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PrintSummary {
    /// Views written.
    pub(crate) views: u64,
    /// Time of the last entry, if there was one.
    pub(crate) last_ms: Option<u64>,
}

/// Whether entries are printed as they arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrintMode {
    /// The window is complete: the look-ahead may wait for entries.
    Whole,
    /// Entries are shown as they arrive.
    Live,
}

/// Prints `window` until its end, or until `over`.
pub(crate) async fn print_window(
    window: &mut LogWindow,
    selection: &Selection,
    mut pace: Pace,
    mut form: LineFormat,
    patience: PrintMode,
    over: &CancellationToken,
) -> anyhow::Result<PrintSummary> {
    let (mut names, mut told, mut ahead) =
        (DisplayNames::default(), PrintSummary::default(), VecDeque::new());
    let mut out = Out::default();
    loop {
        if ahead.is_empty() {
            out.flush()?; // shows the finished lines before it waits
            if out.is_closed() {
                return Ok(told);
            }
            let filled = fill(window, &mut ahead, &mut names, &form, patience);
            match over.run_until_cancelled(filled).await {
                None => break,
                Some(filled) => filled?,
            }
        }
        let Some(Read { entry, record }) = ahead.pop_front() else { break };
        if let Some(due) = pace.due(entry.written_ms) {
            out.flush()?;
            if over.run_until_cancelled(sleep_until(due)).await.is_none() {
                break;
            }
        }
        told.last_ms = Some(entry.written_ms);
        for_each_view(&entry, record.as_ref(), |view| {
            if selection.wants(&view) {
                told.views += 1;
                tell(view, &mut names, &mut form, &mut out);
            }
        });
        out.flush_if_full()?;
        if out.is_closed() {
            return Ok(told);
        }
    }
    out.flush()?;
    Ok(told)
}

/// Fills the look-ahead. It stays empty only at the window's end.
async fn fill(
    window: &mut LogWindow,
    ahead: &mut VecDeque<Read>,
    names: &mut DisplayNames,
    form: &LineFormat,
    patience: PrintMode,
) -> anyhow::Result<()> {
    while ahead.len() < AHEAD {
        let mut next = std::pin::pin!(window.next());
        let entry = match patience {
            PrintMode::Live if !ahead.is_empty() => match futures_util::poll!(next.as_mut()) {
                Poll::Ready(entry) => entry?,
                Poll::Pending => return Ok(()),
            },
            PrintMode::Live | PrintMode::Whole => next.await?,
        };
        let Some(entry) = entry else { return Ok(()) };
        let record = entry.record().ok();
        if let (LineFormat::Pretty(_), Some(record)) = (form, &record) {
            names.learn(&entry, record);
        }
        ahead.push_back(Read { entry, record });
    }
    Ok(())
}

fn tell(mut view: EventView<'_>, names: &mut DisplayNames, form: &mut LineFormat, out: &mut Out) {
    match form {
        LineFormat::Pretty(layout) => {
            names.learn_of(&view);
            layout.write(&mut out.text, &view, names);
        }
        LineFormat::Json => {
            view.at = timestamp::rfc3339(view.at_ms);
            // Plain data of our own: it encodes.
            let line = serde_json::to_string(&view).unwrap_or_default();
            out.text.push_str(&escape_json(line));
            out.text.push('\n');
        }
    }
}

/// Buffered standard output. A closed output ends the replay and is no error.
#[derive(Debug, Default)]
struct Out {
    text: String,
    closed: bool,
}

impl Out {
    fn flush_if_full(&mut self) -> anyhow::Result<()> {
        if self.text.len() < WRITE_BYTES { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        if self.text.is_empty() {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(self.text.as_bytes()).and_then(|()| stdout.flush());
        self.text.clear();
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.closed = true,
            written => written.context("write to standard output")?,
        }
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.closed
    }
}
