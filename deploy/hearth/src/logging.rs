//! Logs go to stderr, so that what a program answers on stdout stays clean.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// How a server logs.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogArgs {
    /// What to log: error, warn, info, debug or trace, or a filter such as hearth_engine=debug,info.
    #[arg(long = "log", value_name = "FILTER", env = "RUST_LOG", default_value = "info")]
    filter: String,
    /// How a line looks.
    #[arg(long = "log-format", value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    format: Format,
    /// One JSON object per line; the same as --log-format json.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people; coloured when stderr is a terminal and NO_COLOR is not set.
    Text,
    /// For machines.
    Json,
}

/// Why logging was not set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The filter does not parse.
    #[error(
        "--log {filter:?} is no log filter; use a level such as info, or target=level pairs joined by ','"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
}

impl LogArgs {
    /// Sets up logging for the whole process. Only the first call in a process counts.
    pub(crate) fn set_up(&self) -> Result<(), LogError> {
        let filter = EnvFilter::builder()
            .parse(&self.filter)
            .map_err(|source| LogError::Filter { filter: self.filter.clone(), source })?;
        let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
        let done = if self.json || self.format == Format::Json {
            base.json().flatten_event(true).try_init()
        } else {
            let colour =
                io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            base.with_ansi(colour).try_init()
        };
        // A second set-up in one process leaves the first in place.
        drop(done);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(filter: &str) -> LogArgs {
        LogArgs { filter: filter.to_owned(), format: Format::Text, json: false }
    }

    #[test]
    fn a_filter_that_does_not_parse_is_refused() {
        let error = args("info,=,=").set_up().unwrap_err();
        assert!(error.to_string().contains("--log \"info,=,=\""), "{error}");
    }

    #[test]
    fn levels_and_targets_are_filters() {
        assert!(args("hearth_engine=debug,info").set_up().is_ok());
        assert!(args("warn").set_up().is_ok());
    }
}
