//! From a tape to standard output.

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

use super::{
    happening::{Happening, take_apart},
    moment,
    names::Names,
    pace::Pace,
    pretty::Layout,
    selection::Selection,
    tape::Tape,
    text::harmless_json,
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

/// What happenings are written as.
#[derive(Debug)]
pub(crate) enum Form {
    Pretty(Layout),
    Json,
}

/// What came of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Happenings written.
    pub(crate) happenings: u64,
    /// The last entry's time, if there was one.
    pub(crate) last_ms: Option<u64>,
}

/// Whether the reader waits for what is yet to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// What is there is there: it may be waited for.
    Whole,
    /// What comes is shown as it comes.
    Live,
}

/// Plays `tape` until its end, or until `over`.
pub(crate) async fn play(
    tape: &mut Tape,
    selection: &Selection,
    mut pace: Pace,
    mut form: Form,
    patience: Patience,
    over: &CancellationToken,
) -> anyhow::Result<Told> {
    let (mut names, mut told, mut ahead) = (Names::default(), Told::default(), VecDeque::new());
    let mut out = Out::default();
    loop {
        if ahead.is_empty() {
            out.flush()?; // while nothing is there, what was there is shown
            if out.is_closed() {
                return Ok(told);
            }
            let filled = fill(tape, &mut ahead, &mut names, &form, patience);
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
        take_apart(&entry, record.as_ref(), |happening| {
            if selection.wants(&happening) {
                told.happenings += 1;
                tell(happening, &mut names, &mut form, &mut out);
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

/// Reads what lies ready. Nothing is left ahead only at the tape's end.
async fn fill(
    tape: &mut Tape,
    ahead: &mut VecDeque<Read>,
    names: &mut Names,
    form: &Form,
    patience: Patience,
) -> anyhow::Result<()> {
    while ahead.len() < AHEAD {
        let mut next = std::pin::pin!(tape.next());
        let entry = match patience {
            Patience::Live if !ahead.is_empty() => match futures_util::poll!(next.as_mut()) {
                Poll::Ready(entry) => entry?,
                Poll::Pending => return Ok(()),
            },
            Patience::Live | Patience::Whole => next.await?,
        };
        let Some(entry) = entry else { return Ok(()) };
        let record = entry.record().ok();
        if let (Form::Pretty(_), Some(record)) = (form, &record) {
            names.learn(&entry, record);
        }
        ahead.push_back(Read { entry, record });
    }
    Ok(())
}

fn tell(mut happening: Happening<'_>, names: &mut Names, form: &mut Form, out: &mut Out) {
    match form {
        Form::Pretty(layout) => {
            names.learn_of(&happening);
            layout.write(&mut out.text, &happening, names);
        }
        Form::Json => {
            happening.at = moment::shown(happening.at_ms);
            // Plain data of our own: it encodes.
            let line = serde_json::to_string(&happening).unwrap_or_default();
            out.text.push_str(&harmless_json(line));
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
