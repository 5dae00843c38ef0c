//! A disk whose power can be cut: an ext4 image in memory, mounted by loop.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Room for the store of a short story; the image is sparse.
const SIZE_BYTES: u64 = 1 << 30;

/// The journal is written when somebody asks for it (fsync), and not by the clock before this.
const COMMIT_SECONDS: u32 = 300;

pub(crate) struct Image {
    home: TempDir,
    /// Which of the copies is the disk.
    number: usize,
    mounted: Option<PathBuf>,
}

impl Image {
    /// A fresh disk, or why there can be none here.
    pub(crate) fn new() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root can mount".to_owned());
        }
        let home = TempDir::new_in("/dev/shm").map_err(|error| format!("/dev/shm: {error}"))?;
        let mut image = Self { home, number: 0, mounted: None };
        let file = fs::File::create(image.path()).map_err(|error| error.to_string())?;
        file.set_len(SIZE_BYTES).map_err(|error| error.to_string())?;
        runs("mkfs.ext4", &["-q", "-F", &image.path().display().to_string()])?;
        let trial = image.home.path().join("trial");
        image.mount(&trial)?;
        image.unmount()?;
        Ok(image)
    }

    fn path(&self) -> PathBuf {
        self.home.path().join(format!("disk-{}", self.number))
    }

    /// Mounts it on `dir`, which is made.
    pub(crate) fn mount(&mut self, dir: &Path) -> Result<(), String> {
        fs::create_dir_all(dir).map_err(|error| format!("{dir:?}: {error}"))?;
        let (image, place) = (self.path().display().to_string(), dir.display().to_string());
        let options = format!("loop,commit={COMMIT_SECONDS}");
        runs("mount", &["-t", "ext4", "-o", &options, &image, &place])?;
        self.mounted = Some(dir.to_owned());
        Ok(())
    }

    pub(crate) fn unmount(&mut self) -> Result<(), String> {
        let Some(dir) = self.mounted.take() else { return Ok(()) };
        runs("umount", &[&dir.display().to_string()])
    }

    /// What is on the disk now, and not in anybody's memory: the disk after the power cut. It is
    /// mounted by the next [`Image::mount`].
    pub(crate) fn is_copied(&mut self) -> Result<(), String> {
        let from = self.path().display().to_string();
        self.number += 1;
        runs("cp", &["--sparse=always", &from, &self.path().display().to_string()])
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // After a failure somebody may still be at home there.
        if let Some(dir) = self.mounted.take()
            && let Err(error) = runs("umount", &["-l", &dir.display().to_string()])
        {
            eprintln!("{error}");
        }
    }
}

fn runs(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{program} {args:?}: {said}")) }
}
