//! A supervised process ends with its supervisor, however that ends.
//!
//! The kernel sends SIGKILL to this process when the *thread* that started it ends, so a supervisor
//! starts children from its main thread only.

use std::io;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// Tied to the process that started this one.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Lifeline {
    /// End at once when the process with this id, which started this one, ends.
    #[arg(long, hide = true, value_name = "PID")]
    die_with_parent: Option<u32>,
}

/// Why this process is not tied to its parent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LifelineError {
    /// It ended before this process could be tied to it.
    #[error("the process {0} that started this one has already ended, so this one ends too")]
    ParentGone(u32),
    /// The kernel refused.
    #[error("cannot tie this process to the one that started it")]
    Refused(#[from] io::Error),
}

/// The arguments that tie a child to this process.
pub(crate) fn arguments() -> [String; 2] {
    ["--die-with-parent".to_owned(), std::process::id().to_string()]
}

impl Lifeline {
    /// Ties this process to its parent, if that was asked for. To be called first of all.
    pub(crate) fn hold(self) -> Result<(), LifelineError> {
        let Some(parent) = self.die_with_parent else { return Ok(()) };
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)?;
        // The parent may have ended before the line above; then nobody would send the signal.
        if is_child_of(parent) { Ok(()) } else { Err(LifelineError::ParentGone(parent)) }
    }
}

fn is_child_of(parent: u32) -> bool {
    getppid().map(Pid::as_raw_pid).and_then(|pid| u32::try_from(pid).ok()) == Some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_told_from_other_processes() {
        assert!(is_child_of(std::os::unix::process::parent_id()));
        assert!(!is_child_of(std::process::id()));
    }

    #[test]
    fn without_the_flag_nothing_is_tied() {
        assert!(Lifeline { die_with_parent: None }.hold().is_ok());
    }
}
