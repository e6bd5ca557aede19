//! A file system of a test's own, gone when dropped.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A mounted file system.
pub(crate) struct Mount(TempDir);

impl Mount {
    /// Mounts one, or says that this is not allowed here, which a test takes as a reason to skip.
    pub(crate) fn new(kind: &str, options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a folder");
        let mounted = Command::new("mount").args(["-t", kind, "-o", options, kind]).arg(dir.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        eprintln!("skipped: no {kind} can be mounted here");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.path().display());
        }
    }
}
