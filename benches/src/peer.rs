//! Other programs: found or installed, started, and gone when we are done.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::system::{Doing, Failure};

/// How long a program may take until it is ready.
const READY: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// The executable of a peer, found or installed by `benches/peers/setup`. May take minutes.
///
/// # Errors
/// [`Failure::Unavailable`] with what the script said.
pub fn executable(name: &str) -> Result<PathBuf, Failure> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/setup");
    let output = Command::new(&script).arg(name).output().doing("running benches/peers/setup")?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.lines().last().filter(|_| output.status.success()) {
        Some(path) => Ok(PathBuf::from(path)),
        None => {
            let why = String::from_utf8_lossy(&output.stderr);
            let why = why.lines().last().unwrap_or("it said nothing").to_owned();
            Err(Failure::Unavailable { why, remedy: "benches/peers/setup NAME says more" })
        }
    }
}

/// The `hearth` program of this build, brought up to date when cargo runs us.
///
/// # Errors
/// [`Failure::Broken`] when it cannot be built or is not there.
pub fn hearth() -> Result<PathBuf, Failure> {
    let here = std::env::current_exe().doing("finding this program")?;
    let hearth = here.with_file_name("hearth");
    if let Some(cargo) = std::env::var_os("CARGO") {
        eprintln!("building hearth (--release), the store that is measured");
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--release", "--package", "hearth"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .doing("running cargo")?;
        if !built.success() {
            return Err(std::io::Error::other("cargo build -p hearth failed")).doing("building hearth");
        }
    }
    if !hearth.exists() {
        return Err(std::io::Error::from(ErrorKind::NotFound))
            .doing("finding hearth beside this program (cargo build --release -p hearth makes it)");
    }
    Ok(hearth)
}

/// A program that ends with this value.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts a program whose words nobody reads.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(command: &mut Command) -> Result<Self, Failure> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().doing("starting a program")?;
        Ok(Self { child })
    }

    /// Waits until `ready` gives a value. Blocks for up to half a minute.
    ///
    /// # Errors
    /// When the program ends before, or takes too long.
    pub fn until<T>(&mut self, mut ready: impl FnMut() -> Option<T>) -> Result<T, Failure> {
        let end = Instant::now() + READY;
        loop {
            if let Some(value) = ready() {
                return Ok(value);
            }
            if let Some(status) = self.child.try_wait().doing("watching a program")? {
                return Err(std::io::Error::other(format!("it ended: {status}")))
                    .doing("waiting for a program");
            }
            if Instant::now() > end {
                return Err(std::io::Error::from(ErrorKind::TimedOut)).doing("waiting for a program");
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_ends_early_is_said() {
        let mut running = Running::start(&mut Command::new("true")).unwrap();
        let error = running.until(|| None::<()>).unwrap_err();
        assert!(error.to_string().contains("it ended"), "{error}");
    }

    #[test]
    fn an_unknown_peer_is_unavailable() {
        let error = executable("no-such-peer").unwrap_err();
        assert!(matches!(error, Failure::Unavailable { .. }), "{error}");
    }
}
