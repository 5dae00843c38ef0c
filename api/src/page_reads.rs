//! Records in the ledger which pages of messages users have read, in batches. So `qiyu trace` also
//! shows a message that a user read later.

use std::time::Duration;

use qiyu_nats::{Bus, chain, ledger_stream::collect_batch};
use qiyu_schema::{
    ledger::{ReadBatch, ReadPage},
    ticket::fresh_nonce,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long a page waits for more pages.
const BATCH_INTERVAL: Duration = Duration::from_millis(100);
/// Pages waiting to be recorded. Further ones are dropped, so that no response waits.
const QUEUED_PAGES_MAX: usize = 4096;
/// How long a batch is retried.
const RECORD_TIMEOUT: Duration = Duration::from_secs(10);

/// The queue of pages that were read.
#[derive(Clone)]
pub(crate) struct PageReads(mpsc::Sender<ReadPage>);

impl PageReads {
    pub(crate) fn new() -> (Self, mpsc::Receiver<ReadPage>) {
        let (pages, queued) = mpsc::channel(QUEUED_PAGES_MAX);
        (Self(pages), queued)
    }

    /// Queues a page.
    pub(crate) fn record(&self, page: ReadPage) {
        self.0.try_send(page).ok(); // full: see QUEUED_PAGES_MAX
    }
}

/// Records queued pages until `stop`, then the remaining ones.
pub(crate) async fn record_queued(
    bus: Bus,
    mut pages: mpsc::Receiver<ReadPage>,
    stop: CancellationToken,
) {
    let _guard = stop.clone().drop_guard(); // it ends only with the process
    loop {
        let first = tokio::select! {
            biased;
            page = pages.recv() => page,
            // Last: pages that are queued already are still recorded.
            () = stop.cancelled() => return,
        };
        let Some(first) = first else { return };
        let at_ms = qiyu_nats::now_ms();
        let batch =
            ReadBatch { at_ms, pages: collect_batch(first, &mut pages, BATCH_INTERVAL).await };
        let key = format!("read:{:032x}", fresh_nonce());
        if let Err(error) = bus.record_reads(&batch, &key, RECORD_TIMEOUT).await {
            warn!(pages = batch.pages.len(), error = %chain(&error), "pages that were read not recorded");
        }
    }
}
