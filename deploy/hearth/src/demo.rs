//! `hearth demo`: what a shared KV cache gives, and what it survives, in about a minute.

mod corrupt;
mod phase;
mod play;
mod report;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use crate::checkpoint::{self, CheckpointError};
use crate::client::chat::ChatError;
use crate::client::control::ControlError;
use crate::document;
use crate::scratch::{Scratch, cache_dir};
use crate::screen::{Lines, Screen};
use crate::signal::{self, Shutdown};
use crate::stack::{Dirs, Settings, Sizes, Stack, StackError};
use play::Play;
use report::Report;

/// Engines of the demo: one that has seen the document and one that has not.
const ENGINES: usize = 2;

/// See it work: several users ask about one document, and parts are killed meanwhile.
///
/// Starts a store node, two engines and a router as processes of their own, sends them real requests,
/// kills some of them, and shows for each phase where the KV cache of the prompt came from and how long
/// the first token took. Fails when any answer differs from the first one. Everything it started is gone
/// when it ends.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Flip bytes of one stored block on disk while the store node is down: it has to be noticed.
    #[arg(long)]
    corrupt: bool,
    /// Write the numbers as JSON to FILE; `-` is stdout.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Hugging Face checkpoint directory to serve [default: a generated one with random weights]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Send about this much of the carried text as the document.
    #[arg(long, value_name = "BYTES", default_value_t = 19_000)]
    document_bytes: usize,
    /// Tokens of each answer.
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..))]
    new_tokens: u16,
    /// Leave the directory with blocks and logs, and say where it is.
    #[arg(long)]
    keep: bool,
    /// Show where the router sent each request and why, and what was answered.
    #[arg(long, short)]
    verbose: bool,
    /// What the parts write to their logs (see --keep): error, warn, info, debug or trace, or a filter.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
    #[command(flatten)]
    sizes: Sizes,
}

/// The demo did not show what it claims.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    /// A phase did not show what it is there to show.
    #[error("phase ({phase}) did not hold: {broken}")]
    Broken {
        /// Its letter.
        phase: char,
        /// What was expected and what was seen.
        broken: phase::Broken,
    },
    /// A request failed, which no phase allows.
    #[error("phase ({phase}): the request of {user} failed")]
    Request {
        /// Letter of the phase.
        phase: char,
        /// Who asked.
        user: String,
        /// Why.
        source: ChatError,
    },
    /// An answer differs from the first one to the same question.
    #[error(
        "phase ({phase}): the answer to {user} differs from the first one\n  first: {first:?} ({first_tokens} tokens)\n  \
         now:   {now:?} ({now_tokens} tokens)"
    )]
    Differs {
        /// Letter of the phase.
        phase: char,
        /// Who asked.
        user: String,
        /// The reference.
        first: String,
        /// Its length.
        first_tokens: u64,
        /// This one.
        now: String,
        /// Its length.
        now_tokens: u64,
    },
    /// The engine did not write back.
    #[error(
        "the store node holds {held} blocks of the document after {seconds} s, of {blocks}; is --pinned-bytes too small?"
    )]
    NotWritten {
        /// What it holds.
        held: u64,
        /// What it should hold.
        blocks: u64,
        /// How long was waited.
        seconds: u64,
    },
    /// The router did not find an engine again.
    #[error("the router does not see that {engine} is back; --keep leaves the logs for a look")]
    NotSeen {
        /// Which engine.
        engine: String,
    },
    /// The metrics of a part could not be read.
    #[error("cannot read the metrics of {part}")]
    Metrics {
        /// Whose.
        part: String,
        /// Why not.
        source: reqwest::Error,
    },
    /// The store's control service failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No block was damaged.
    #[error(transparent)]
    Corrupt(#[from] corrupt::CorruptError),
    /// There is nothing to serve.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A part did not start.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The client could not be made.
    #[error("cannot set up the HTTP client")]
    Client(#[source] ChatError),
    /// No place for the run's files.
    #[error("cannot make a directory for the run; set XDG_CACHE_HOME to a writable directory")]
    Dir(#[source] io::Error),
    /// The numbers could not be written.
    #[error("cannot write the numbers to {path}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The terminal is gone.
    #[error("cannot write to the terminal")]
    Screen(#[from] io::Error),
}

/// What a run happens on.
struct Stage {
    screen: Screen,
    dirs: Dirs,
    shutdown: Shutdown,
}

/// Runs `hearth demo`.
pub(crate) async fn run(args: Args, shutdown: Shutdown) -> Result<ExitCode, DemoError> {
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    let screen = Screen::new(if to_stdout { Lines::Stderr } else { Lines::Stdout });
    let data = Scratch::new(&cache_dir(), "demo")
        .or_else(|_| Scratch::new(&std::env::temp_dir(), "hearth-demo"))
        .map_err(DemoError::Dir)?;
    let sockets = Scratch::for_sockets(data.path(), "hearth-run").map_err(DemoError::Dir)?;
    let dirs = Dirs { data: data.path().to_owned(), run: sockets.path().to_owned() };
    let stage = Stage { screen, dirs, shutdown: shutdown.clone() };
    let mut report = Report::default();
    let start = Instant::now();
    // The stack belongs to the future: whichever arm is taken, its parts are stopped before the arm runs.
    let outcome = tokio::select! {
        outcome = play(&args, &stage, &mut report) => outcome,
        signal = shutdown.asked() => {
            drop(stage.screen.line("\nStopped; nothing is left running."));
            return Ok(ExitCode::from(signal::exit_code(signal)));
        }
    };
    report.finish(outcome.as_ref().err());
    let written = write_json(&args, &report);
    drop(sockets);
    if args.keep {
        stage.screen.line(format!("Kept: {}", data.keep().display()))?;
    }
    stage.screen.line(report.table())?;
    outcome?;
    stage.screen.line(report.closing(start.elapsed()))?;
    written?;
    Ok(ExitCode::SUCCESS)
}

async fn play(args: &Args, stage: &Stage, report: &mut Report) -> Result<(), DemoError> {
    let start = Instant::now();
    let Stage { screen, dirs, shutdown } = stage;
    let document = document::excerpt(document::OPTICKS, args.document_bytes);
    screen.line(introduction(document))?;
    let checkpoint = checkpoint::provide(args.model.as_deref(), screen).await?;
    let noise = if checkpoint.random { " (random weights: for wiring, not for talk)" } else { "" };
    screen.line(format!("  model    {}{noise}", checkpoint.name))?;
    report.begin(&checkpoint.name, document);
    let settings = Settings {
        dirs: dirs.clone(),
        checkpoint,
        engines: ENGINES,
        listen: ([127, 0, 0, 1], 0).into(),
        sizes: args.sizes.clone(),
        log: args.log.clone(),
    };
    let step = screen.step("starting");
    let stack = Stack::start(settings, shutdown.clone(), |what| step.now(what)).await?;
    drop(step);
    screen.line(parts(&stack, start))?;
    let mut play = Play::new(args, stack, document, screen)?;
    play.all(report).await
}

fn introduction(document: &str) -> String {
    let users = document::QUESTIONS.map(|(user, _)| user).join(", ");
    format!(
        "Hearth demo: {} users ({users}) ask about one document. Before a model can answer it has to read the\n\
         document, token by token, into its KV cache. Hearth keeps that cache, so that no engine reads it twice.\n\n  \
         document {}, the first {} kB",
        document::QUESTIONS.len(),
        document::TITLE,
        document.len() / 1000
    )
}

fn parts(stack: &Stack, start: Instant) -> String {
    let engines = stack.engines.iter().map(|engine| (engine.name(), engine.id(), &engine.address.http));
    let all = std::iter::once((stack.store.name(), stack.store.id(), &stack.store.address.http))
        .chain(engines)
        .chain(std::iter::once((stack.router.name(), stack.router.id(), &stack.router.address.http)));
    let mut text =
        format!("  ready    after {:.1} s, as processes of this machine:", start.elapsed().as_secs_f64());
    for (name, id, http) in all {
        text += &format!("\n           {name:<9} pid {id:<7} http://{http}");
    }
    text
}

fn write_json(args: &Args, report: &Report) -> Result<(), DemoError> {
    let Some(path) = &args.json else { return Ok(()) };
    let json = report.json();
    let done = if path == Path::new("-") {
        use io::Write;
        writeln!(io::stdout().lock(), "{json}")
    } else {
        fs::write(path, json + "\n")
    };
    done.map_err(|source| DemoError::Json { path: path.clone(), source })
}
