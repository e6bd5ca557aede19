//! The command line.

use clap::{Parser, Subcommand};

use crate::lifeline::Lifeline;
use crate::logging::LogArgs;
use crate::{checkpoint, demo, up};

/// Keeps the KV cache of an LLM cluster as a service: computed once, found by every engine.
#[derive(Debug, Parser)]
#[command(name = "hearth", version, arg_required_else_help = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "Start with `hearth demo`; it takes about a minute and needs nothing. `hearth up` leaves the same \
                          parts running. The other commands are those parts, to be run on their own.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(demo::Args),
    Up(up::Args),
    /// The store node: keeps KV blocks in memory and on disk for the engines of this machine.
    Cachesvc(Server<hearth_cachesvc::cli::Args>),
    /// An engine: serves a model, takes KV blocks from the store and gives back new ones.
    Engine(Server<hearth_engine::cli::Args>),
    /// The router: one address for all engines, sends each request where its prompt is cached.
    Router(Box<Server<hearth_router::cli::Args>>),
    #[command(name = "tiny-model")]
    TinyModel(checkpoint::Args),
}

/// What every server takes besides its own options.
#[derive(Debug, clap::Args)]
pub(crate) struct Server<A: clap::Args> {
    #[command(flatten)]
    pub(crate) args: A,
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(flatten)]
    pub(crate) lifeline: Lifeline,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
