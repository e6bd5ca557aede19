//! What the person at the terminal sees: lines that stay, and a spinner for what is going on.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(100);

/// Where lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lines {
    /// The usual place.
    Stdout,
    /// When stdout carries something for machines.
    Stderr,
}

/// Writes lines, and shows a spinner on stderr while a step runs, if that is a terminal.
#[derive(Debug)]
pub(crate) struct Screen {
    lines: Lines,
    spinner: ProgressBar,
}

/// A step that is going on; its spinner goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Step<'a> {
    spinner: &'a ProgressBar,
}

impl Screen {
    /// A screen whose lines go there.
    pub(crate) fn new(lines: Lines) -> Self {
        let spinner =
            if io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        let style =
            ProgressStyle::with_template("  {spinner} {msg} ({elapsed})").expect("the template is valid");
        spinner.set_style(style);
        // Nothing is going on yet: lines are written without a spinner below them.
        spinner.finish_and_clear();
        Self { lines, spinner }
    }

    /// Writes a line that stays.
    ///
    /// # Errors
    /// When nobody reads any more, as after `| head`.
    pub(crate) fn line(&self, text: impl Display) -> io::Result<()> {
        self.spinner.suspend(|| match self.lines {
            Lines::Stdout => writeln!(io::stdout().lock(), "{text}"),
            Lines::Stderr => writeln!(io::stderr().lock(), "{text}"),
        })
    }

    /// Shows that something is going on until the step is dropped, or says so in a line where there is no terminal.
    /// One step at a time.
    pub(crate) fn step(&self, what: impl Display) -> Step<'_> {
        if self.spinner.is_hidden() {
            // Whoever reads a file or a pipe sees what takes so long. That it cannot be written is found by the next line.
            self.line(format_args!("    ... {what}")).ok();
        }
        self.spinner.set_message(what.to_string());
        self.spinner.reset();
        self.spinner.enable_steady_tick(TICK);
        Step { spinner: &self.spinner }
    }
}

impl Step<'_> {
    /// Says what is going on now.
    pub(crate) fn now(&self, what: impl Display) {
        self.spinner.set_message(what.to_string());
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.spinner.disable_steady_tick();
        self.spinner.finish_and_clear();
    }
}
