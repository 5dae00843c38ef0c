//! The directory everything of one `qiyu up` lives in: held by one process at
//! a time, readable by nobody else.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use qiyu_schema::Secret;

const LOCK: &str = "lock";
const URL: &str = "nats.url";
const STORE: &str = "nats/jetstream";

/// Why a directory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It cannot be made or written.
    #[error("open data directory {dir:?} (QIYU_DATA_DIR, --data-dir)")]
    Io {
        /// Which.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else has it.
    #[error(
        "data directory {dir:?} is in use by process {pid}; stop that one, or give this one its \
         own with --data-dir"
    )]
    InUse {
        /// Which.
        dir: PathBuf,
        /// As the holder wrote it, or `unknown`.
        pid: String,
    },
}

/// A data directory that this process holds until the value is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    // Locked; the kernel unlocks it however we end.
    _lock: File,
}

impl DataDir {
    /// Makes the directory, closed to other users, and takes its lock. One that
    /// is there stays as open as it is: what must be hidden is closed by itself.
    ///
    /// # Errors
    ///
    /// [`DataDirError::InUse`] names the process that holds it.
    pub fn open(dir: &Path) -> Result<Self, DataDirError> {
        let failed = |source| DataDirError::Io { dir: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let path = dir.canonicalize().map_err(failed)?;
        let mut lock = lock_file(&path).map_err(failed)?;
        // `running_url` holds the lock for an instant: only a lasting holder is one.
        for _ in 0..10 {
            match lock.try_lock() {
                Ok(()) => {
                    lock.set_len(0).map_err(failed)?;
                    lock.write_all(std::process::id().to_string().as_bytes()).map_err(failed)?;
                    remove_if_there(&path.join(URL)).map_err(failed)?;
                    return Ok(Self { path, _lock: lock });
                }
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(20)),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
        let mut pid = String::new();
        lock.rewind().and_then(|()| lock.read_to_string(&mut pid)).map_err(failed)?;
        let pid = if pid.is_empty() { "unknown".to_owned() } else { pid };
        Err(DataDirError::InUse { dir: path, pid })
    }

    /// Absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells other commands where the running system's NATS is.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn announce(&self, url: &Secret) -> io::Result<()> {
        write_private(&self.path.join(URL), url.expose())
    }

    /// Takes [`DataDir::announce`] back.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be removed.
    pub fn retract(&self) -> io::Result<()> {
        remove_if_there(&self.path.join(URL))
    }
}

/// Where the NATS of the system running on `data_dir` is; none when nothing
/// runs there, whatever a killed one may have left behind.
///
/// # Errors
///
/// When the directory is there and cannot be read.
pub fn running_url(data_dir: &Path) -> io::Result<Option<Secret>> {
    let url = match fs::read_to_string(data_dir.join(URL)) {
        Ok(url) => url,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match lock_file(data_dir)?.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Ok(Some(Secret::new(url))),
        Ok(()) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether a system has run on `data_dir` before.
pub fn holds_data(data_dir: &Path) -> bool {
    data_dir.join(STORE).is_dir()
}

/// Writes `path` for this user's eyes only. A reader sees the old text or the new.
///
/// # Errors
///
/// When it cannot be written; then it is unchanged.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(name);
    remove_if_there(&new)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// The text kept in `path`; the first time, what `make` gives is kept there.
///
/// # Errors
///
/// When it can be neither read nor written.
pub fn read_or_create_private(path: &Path, make: impl FnOnce() -> String) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let text = make();
    write_private(path, &text)?;
    Ok(text)
}

fn lock_file(dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join(LOCK))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("qiyu-{name}-{}", std::process::id()));
        fs::remove_dir_all(&dir).ok();
        dir
    }

    #[test]
    fn one_process_holds_a_directory() {
        let dir = scratch("lock");
        let held = DataDir::open(&dir).unwrap();
        assert!(matches!(
            DataDir::open(&dir),
            Err(DataDirError::InUse { pid, .. }) if pid == std::process::id().to_string()
        ));
        held.announce(&Secret::new("nats://u:p@h:1")).unwrap();
        assert_eq!(running_url(&dir).unwrap(), Some(Secret::new("nats://u:p@h:1")));
        let mode = fs::metadata(dir.join(URL)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(held); // as a kill would: the announcement stays
        assert_eq!(running_url(&dir).unwrap(), None);
        DataDir::open(&dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_kept_is_made_once() {
        let dir = scratch("keep");
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("x");
        assert_eq!(read_or_create_private(&path, || "one".into()).unwrap(), "one");
        assert_eq!(read_or_create_private(&path, || "two".into()).unwrap(), "one");
        fs::remove_dir_all(&dir).unwrap();
    }
}
