//! From a window to standard output.

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

/// Entries read ahead, so that those who come in have the names they speak under later.
const AHEAD: usize = 2_000;
/// Bytes written at once.
const WRITE_BYTES: usize = 64 * 1024;

/// An entry, and what it says, if it says anything.
struct Read {
    entry: LogEntry,
    record: Option<Record>,
}

/// What views are written as.
#[derive(Debug)]
pub(crate) enum LineFormat {
    Pretty(Layout),
    Json,
}

/// What came of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PrintSummary {
    /// Happenings written.
    pub(crate) views: u64,
    /// The last entry's time, if there was one.
    pub(crate) last_ms: Option<u64>,
}

/// Whether the reader waits for what is yet to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrintMode {
    /// What is there is there: it may be waited for.
    Whole,
    /// What comes is shown as it comes.
    Live,
}

/// Plays `window` until its end, or until `over`.
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
            out.flush()?; // while nothing is there, what was there is shown
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

/// Reads what lies ready. Nothing is left ahead only at the window's end.
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

/// Standard output. Nobody listening there any more is an end, not a fault.
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
