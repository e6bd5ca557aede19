//! The operator's program of Hearth: every part of the system as a subcommand of one binary.

#![forbid(unsafe_code)]

mod checkpoint;
mod cli;
mod client;
mod demo;
mod document;
mod lifeline;
mod logging;
mod metrics;
mod scratch;
mod screen;
mod signal;
mod stack;
mod supervise;
mod up;

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command, Server};
use signal::{Patience, Shutdown};
use tokio::runtime::{Builder, Runtime};

/// Resolves when the process is asked to stop.
type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;
/// What ends the program with a message.
type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(failure) => {
            report(failure.as_ref());
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Demo(args) => {
            let shutdown = Shutdown::listen(Patience::Supervisor)?;
            Ok(main_thread()?.block_on(demo::run(args, shutdown))?)
        }
        Command::Up(args) => {
            let shutdown = Shutdown::listen(Patience::Supervisor)?;
            Ok(main_thread()?.block_on(up::run(args, shutdown))?)
        }
        Command::Cachesvc(server) => serve(server, hearth_cachesvc::run),
        Command::Engine(server) => serve(server, hearth_engine::cli::run),
        Command::Router(server) => serve(*server, hearth_router::cli::run),
        Command::TinyModel(args) => {
            args.lifeline().hold()?;
            Ok(checkpoint::run(&args)?)
        }
    }
}

/// Runs one part until it is asked to stop.
fn serve<A, R, E>(server: Server<A>, run: impl FnOnce(A, Stop) -> R) -> Result<ExitCode, Failure>
where
    A: clap::Args,
    R: Future<Output = Result<(), E>>,
    E: Error + 'static,
{
    server.lifeline.hold()?;
    server.log.set_up()?;
    let shutdown = Shutdown::listen(Patience::Server)?;
    let stop: Stop = Box::pin(async move {
        let signal = shutdown.asked().await;
        tracing::info!(signal, "asked to stop; a second signal ends the process at once");
    });
    Builder::new_multi_thread().enable_all().build()?.block_on(run(server.args, stop))?;
    Ok(ExitCode::SUCCESS)
}

/// A runtime on the main thread alone: children have to be started from a thread that lives as long as
/// the process.
fn main_thread() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// An error and what caused it, each cause on a line of its own.
fn report(failure: &dyn Error) {
    eprintln!("hearth: {failure}");
    let mut last = failure.to_string();
    let mut cause = failure.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // A transparent error repeats the one below it.
        if text != last {
            eprintln!("  because: {text}");
        }
        (last, cause) = (text, error.source());
    }
}
