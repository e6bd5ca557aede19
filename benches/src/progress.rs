//! A line that says how far a case is, on a terminal only.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How far a case is.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A line on stderr where that is a terminal, nothing elsewhere.
    pub fn start(suite: &str, case: &str, rounds: usize) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::silent();
        }
        let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {msg} {elapsed}");
        let bar = ProgressBar::new(rounds as u64).with_prefix(format!("{suite}/{case}"));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar }
    }

    /// Shows nothing but warnings.
    pub fn silent() -> Self {
        Self { bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()) }
    }

    /// What is being done now.
    pub fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// The number of the round that begins, from 0.
    pub fn round(&self, round: usize) {
        self.bar.set_message("rounds");
        self.bar.set_position(round as u64);
    }

    /// A line that stays.
    pub fn warn(&self, what: &str) {
        self.bar.suspend(|| eprintln!("{what}"));
    }

    /// Takes the line away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
