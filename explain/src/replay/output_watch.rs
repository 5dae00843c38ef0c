//! Detects that the reader of standard output has closed it.

use std::{io, time::Duration};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// Interval between two checks of standard output.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Returns a token that is cancelled with `stop`, or when the reader of standard output
/// closes it. Without it, a follower of a silent room would notice only at the next event.
/// The check runs for as long as the guard lives.
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

/// Whether the other end of standard output is closed: a pipe's or a socket's. A file has
/// none (poll(2), `POLLERR` and `POLLHUP`, which are always reported).
fn has_left() -> bool {
    let stdout = io::stdout();
    let mut options = [PollFd::new(&stdout, PollFlags::empty())];
    let at_once = Timespec::default();
    poll(&mut options, Some(&at_once)).is_ok()
        && options[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}
