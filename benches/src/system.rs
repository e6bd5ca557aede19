//! What is measured: one system doing the work of a case.

use std::error::Error;
use std::time::Duration;

/// One measured value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Name of what was measured, `GB/s` or `latency_p50`.
    pub metric: &'static str,
    /// Unit, `GB/s` (10⁹ bytes).
    pub unit: &'static str,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// Bytes moved in a time: the metric `GB/s`.
    pub fn rate(bytes: usize, took: Duration) -> Self {
        Self { metric: "GB/s", unit: "GB/s", value: bytes as f64 / took.as_secs_f64() / 1e9 }
    }

    /// A time in microseconds, under the name of what took it.
    pub fn micros(metric: &'static str, took: Duration) -> Self {
        Self { metric, unit: "us", value: took.as_secs_f64() * 1e6 }
    }
}

/// A system that does the work of a case, opened and filled, ready to be measured.
///
/// Opening it is the business of its [`Entry`]; dropping it ends what it started.
pub trait System {
    /// Does the work of one round and says what it took. Returns the same metrics each time.
    ///
    /// # Errors
    /// [`Failure`]; ends the run.
    fn run_once(&mut self) -> Result<Vec<Sample>, Failure>;
}

/// A system by name, not yet opened.
pub struct Entry {
    /// Name in the report: `hearth`, `hearth:variant`, a peer's name, or `limit:` and what limits.
    pub name: &'static str,
    /// Starts it and fills it with what it will be asked for. May take a while; is not measured.
    pub open: Box<dyn FnOnce() -> Result<Box<dyn System>, Failure>>,
}

impl Entry {
    /// A system by name.
    pub fn new(
        name: &'static str,
        open: impl FnOnce() -> Result<Box<dyn System>, Failure> + 'static,
    ) -> Self {
        Self { name, open: Box::new(open) }
    }
}

/// Why a system cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It is not here and cannot be had: it is left out, and that is said.
    #[error("{why} ({remedy})")]
    Unavailable {
        /// What is missing.
        why: String,
        /// What a person can do to have it.
        remedy: &'static str,
    },
    /// It delivered bytes that were not the ones stored: no number of it means anything.
    #[error("wrong bytes in block {block}")]
    WrongBytes {
        /// Which block.
        block: usize,
    },
    /// It did not do what it was asked.
    #[error("{doing}: {cause}")]
    Broken {
        /// What it was asked.
        doing: &'static str,
        /// What it said.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
}

/// Gives an error the words of what was being done.
pub trait Doing<T> {
    /// Turns the error into a [`Failure::Broken`].
    ///
    /// # Errors
    /// Whenever `self` is one.
    fn doing(self, what: &'static str) -> Result<T, Failure>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> Doing<T> for Result<T, E> {
    fn doing(self, what: &'static str) -> Result<T, Failure> {
        self.map_err(|cause| Failure::Broken { doing: what, cause: cause.into() })
    }
}
