//! What the outside asks of this process: SIGINT, SIGTERM and SIGHUP.
//!
//! A thread of its own listens, so that a second signal is heard while the program waits for something
//! that blocks.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The signals could not be listened for.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for signals; without that Ctrl-C would leave processes behind")]
pub(crate) struct SignalError(#[from] io::Error);

/// How the program takes being asked to stop more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// The second signal ends the process at once: it has no children.
    Server,
    /// The second signal is passed on by [`Shutdown::hurried`], so that children go first; the third
    /// ends the process at once.
    Supervisor,
}

impl Patience {
    fn is_over(self, signals: u32) -> bool {
        signals >= if self == Self::Server { 2 } else { 3 }
    }
}

/// Which signal came first, and how many came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Heard {
    first: Option<u8>,
    count: u32,
}

/// Tells when the process is asked to stop. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Shutdown {
    heard: watch::Receiver<Heard>,
}

impl Shutdown {
    /// Starts to listen. From here on the three signals no longer end the process by themselves.
    pub(crate) fn listen(patience: Patience) -> Result<Self, SignalError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let guard = runtime.enter();
        let [mut interrupt, mut terminate, mut hangup] =
            [signal(kinds[0])?, signal(kinds[1])?, signal(kinds[2])?];
        drop(guard);
        let (sender, heard) = watch::channel(Heard::default());
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async move {
                loop {
                    let kind = tokio::select! {
                        _ = interrupt.recv() => kinds[0],
                        _ = terminate.recv() => kinds[1],
                        _ = hangup.recv() => kinds[2],
                    };
                    let number = u8::try_from(kind.as_raw_value()).expect("signal numbers are small");
                    sender.send_modify(|heard| {
                        heard.first.get_or_insert(number);
                        heard.count += 1;
                    });
                    if patience.is_over(sender.borrow().count) {
                        std::process::exit(i32::from(exit_code(number)));
                    }
                }
            });
        })?;
        Ok(Self { heard })
    }

    /// Waits for the first signal and gives its number. Cancel-safe.
    pub(crate) async fn asked(&self) -> u8 {
        let mut heard = self.heard.clone();
        let heard = heard.wait_for(|heard| heard.first.is_some()).await.map(|heard| *heard);
        match heard.ok().and_then(|heard| heard.first) {
            Some(number) => number,
            // The listening thread is gone: nothing will ever be asked.
            None => std::future::pending().await,
        }
    }

    /// Whether a second signal came: whoever asks does not want to wait.
    pub(crate) fn hurried(&self) -> bool {
        self.heard.borrow().count > 1
    }
}

/// Exit code of a process that was ended by this signal, as shells count it.
pub(crate) fn exit_code(signal: u8) -> u8 {
    128 + signal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_end_at_the_second_signal_and_supervisors_at_the_third() {
        assert!(!Patience::Server.is_over(1));
        assert!(Patience::Server.is_over(2));
        assert!(!Patience::Supervisor.is_over(2));
        assert!(Patience::Supervisor.is_over(3));
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!((exit_code(2), exit_code(15)), (130, 143));
    }
}
