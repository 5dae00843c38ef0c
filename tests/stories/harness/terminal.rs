//! The program on a terminal, as somebody who typed its name sees it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::time::timeout;

use super::process::qiyu;

/// How long a command that only looks may take.
const LOOK: Duration = Duration::from_secs(60);

/// Runs `qiyu <args>` to its end on a terminal of so many columns: what is on its screen.
pub(crate) async fn on_a_terminal(args: &[&str], columns: u16, variable: (&str, &str)) -> String {
    let (screen, stdout) = pair(columns);
    let settings = [("TERM", "xterm-256color"), variable];
    let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut command = qiyu(args, &settings);
    command.env_remove("NO_COLOR").envs([variable]);
    command.stdout(Stdio::from(stdout)).stderr(Stdio::null());
    let mut child = command.spawn().expect("the program can be run");
    drop(command); // and with it our own end of its stdout
    let shown = tokio::task::spawn_blocking(move || {
        let (mut screen, mut shown) = (File::from(screen), Vec::new());
        // Where nobody is left who could write, reading fails with EIO (pty(7)).
        screen.read_to_end(&mut shown).ok();
        shown
    });
    let status = timeout(LOOK, child.wait()).await.expect("it ends").expect("a child ends");
    assert!(status.success(), "{args:?} ended with {status}");
    let shown = shown.await.expect("the screen can be read");
    String::from_utf8(shown).expect("text").replace("\r\n", "\n")
}

/// A screen, and what to write to for something to appear on it.
fn pair(columns: u16) -> (OwnedFd, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let screen = openpt(flags).expect("a terminal");
    grantpt(&screen).expect("it is ours");
    unlockpt(&screen).expect("it can be opened");
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&screen, size).expect("it has a size");
    let path = ptsname(&screen, Vec::new()).expect("it has a name");
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
    let stdout = open(path, flags, Mode::empty()).expect("its other side");
    (screen, stdout)
}
