//! Whoever reads what is printed, and leaves.

use std::{io, time::Duration};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// How often it is looked whether somebody still reads.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A token that is cancelled with `stop`, and when nobody reads standard output
/// any more: whoever follows a silent room would learn that with its next event
/// only. It is looked after for as long as the guard lives.
pub(crate) fn cancel_when_unread(stop: &CancellationToken) -> (CancellationToken, DropGuard) {
    let over = stop.child_token();
    let guard = over.clone().drop_guard();
    let read = over.clone();
    TaskTracker::new().spawn(async move {
        let looking = async {
            while !has_left() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        read.run_until_cancelled(looking).await;
        read.cancel();
    });
    (over, guard)
}

/// Whether the other end of standard output is closed: a pipe's or a socket's.
/// A file has none (poll(2), `POLLERR` and `POLLHUP`, which need not be options for).
fn has_left() -> bool {
    let stdout = io::stdout();
    let mut options = [PollFd::new(&stdout, PollFlags::empty())];
    let at_once = Timespec::default();
    poll(&mut options, Some(&at_once)).is_ok()
        && options[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}
