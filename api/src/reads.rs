//! Writing down which pages of messages people have read, in batches: so that
//! "did they get it?" can be answered for those who read it later.

use std::time::Duration;

use qiyu_nats::{Bus, chain, record::gather};
use qiyu_schema::{
    ledger::{Page, ReadBatch},
    ticket::fresh_nonce,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long a page waits for company.
const BATCH_WAIT: Duration = Duration::from_millis(100);
/// Pages waiting to be written. Further ones are not recorded: nobody waits for this.
const PAGES_MAX: usize = 4096;
/// How long a batch is tried before it is given up.
const RECORD_DEADLINE: Duration = Duration::from_secs(10);

/// Where routes note the pages they answer with.
#[derive(Clone)]
pub(crate) struct Reads(mpsc::Sender<Page>);

impl Reads {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Page>) {
        let (pages, noted) = mpsc::channel(PAGES_MAX);
        (Self(pages), noted)
    }

    pub(crate) fn note(&self, page: Page) {
        self.0.try_send(page).ok(); // full: see PAGES_MAX
    }
}

/// Records pages until `stop`, then what is left.
pub(crate) async fn record(bus: Bus, mut pages: mpsc::Receiver<Page>, stop: CancellationToken) {
    let _alarm = stop.clone().drop_guard(); // it ends only with the process
    loop {
        let first = tokio::select! {
            biased;
            page = pages.recv() => page,
            // Last: what was read already is still recorded.
            () = stop.cancelled() => return,
        };
        let Some(first) = first else { return };
        let at_ms = qiyu_nats::now_ms();
        let batch = ReadBatch { at_ms, pages: gather(first, &mut pages, BATCH_WAIT).await };
        let key = format!("read:{:032x}", fresh_nonce());
        if let Err(error) = bus.record_reads(&batch, &key, RECORD_DEADLINE).await {
            warn!(pages = batch.pages.len(), error = %chain(&error), "what was read is not recorded");
        }
    }
}
