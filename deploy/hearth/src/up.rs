//! `hearth up`: the stack, until somebody stops it.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use serde::Serialize;

use crate::checkpoint::{self, Checkpoint, CheckpointError};
use crate::scratch::{Scratch, lock_directory};
use crate::screen::{Lines, Screen};
use crate::signal::Shutdown;
use crate::stack::{self, Dirs, Settings, Sizes, Stack, StackError, StoreAddress};
use crate::supervise::SuperviseError;

/// How often the parts are looked after.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Restarts of dead parts within [`RESTART_WINDOW`] before the whole is given up.
const RESTARTS_MAX: usize = 5;
const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// Engines on one machine; more than anybody has cores for.
const ENGINES_MAX: u8 = 64;

/// Start a store node, engines and a router on this machine and leave them running.
///
/// The router answers an OpenAI-compatible API on --listen. What the store keeps stays in --data-dir and
/// is found again by the next start. A part that dies is started again.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Hugging Face checkpoint directory to serve [default: a generated one with random weights]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Where the router listens; loopback only. Port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// How many engines to start.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(ENGINES_MAX)))]
    engines: u8,
    /// Directory for stored blocks, the tenant's secret and logs.
    #[arg(long, value_name = "DIR", default_value = ".hearth/up")]
    data_dir: PathBuf,
    /// Write a JSON file with all addresses when everything is ready.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// What the parts write to their logs: error, warn, info, debug or trace, or a filter.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
    #[command(flatten)]
    sizes: Sizes,
}

/// The stack did not start, or did not stay.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpError {
    /// Somebody else has the port.
    #[error(
        "{listen} is in use by another program; stop that one, or choose another port with \
         --listen {ip}:PORT (port 0 picks a free one)",
        ip = listen.ip()
    )]
    PortInUse {
        /// The address.
        listen: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {listen}; choose an address of this machine with --listen")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The address is reachable from other machines.
    #[error(
        "--listen {0} is reachable from other machines, and `hearth up` has no access control; listen on \
         127.0.0.1 and put a reverse proxy with TLS in front of it"
    )]
    NotLoopback(SocketAddr),
    /// Another `hearth up` uses the directory.
    #[error("{0} is in use by another `hearth up`; stop that one, or choose another --data-dir")]
    DataDirInUse(PathBuf),
    /// The directory for sockets could not be made.
    #[error("cannot make a directory for sockets; is the folder for temporary files writable?")]
    RunDir(#[source] io::Error),
    /// The ready file could not be written.
    #[error("cannot write --ready-file {path}")]
    ReadyFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is nothing to serve.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A part did not start.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// A part could not be looked after.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    /// Parts die again and again.
    #[error("parts died {RESTARTS_MAX} times within a minute; the last: {0}")]
    KeepsDying(#[source] SuperviseError),
    /// The terminal is gone.
    #[error("cannot write to the terminal")]
    Screen(#[from] io::Error),
}

/// What `--ready-file` says.
#[derive(Debug, Serialize)]
struct Ready<'a> {
    url: String,
    model: &'a str,
    engines: Vec<String>,
    store: &'a StoreAddress,
}

/// Runs `hearth up` until a signal or a failure.
pub(crate) async fn run(args: Args, shutdown: Shutdown) -> Result<ExitCode, UpError> {
    check_listen(args.listen)?;
    let screen = Screen::new(Lines::Stdout);
    let data = stack::data_dir(&args.data_dir)?;
    let lock = lock_directory(&data).map_err(|source| StackError::Dir { path: data.clone(), source })?;
    let _lock = lock.ok_or_else(|| UpError::DataDirInUse(args.data_dir.clone()))?;
    if let Some(path) = &args.ready_file {
        remove_ready_file(path).map_err(|source| UpError::ReadyFile { path: path.clone(), source })?;
    }
    let run = Scratch::for_sockets(&std::env::temp_dir(), "hearth-up").map_err(UpError::RunDir)?;
    let dirs = Dirs { data, run: run.path().to_owned() };
    let mut stack = tokio::select! {
        stack = start(&args, dirs, shutdown.clone(), &screen) => stack?,
        _ = shutdown.asked() => return Ok(ExitCode::SUCCESS),
    };
    let outcome = tokio::select! {
        outcome = serve(&args, &mut stack, &screen) => outcome,
        _ = shutdown.asked() => {
            // Nobody may be reading any more; stopping goes on all the same.
            drop(screen.line("\nStopping. A second Ctrl-C does not wait for requests in flight."));
            Ok(())
        }
    };
    drop(stack);
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn start(args: &Args, dirs: Dirs, shutdown: Shutdown, screen: &Screen) -> Result<Stack, UpError> {
    let checkpoint = checkpoint::provide(args.model.as_deref(), screen).await?;
    let settings = Settings {
        dirs,
        checkpoint,
        engines: usize::from(args.engines),
        listen: args.listen,
        sizes: args.sizes.clone(),
        log: args.log.clone(),
    };
    let step = screen.step("starting");
    Ok(Stack::start(settings, shutdown, |what| step.now(what)).await?)
}

async fn serve(args: &Args, stack: &mut Stack, screen: &Screen) -> Result<(), UpError> {
    screen.line(greeting(stack))?;
    if let Some(path) = &args.ready_file {
        write_ready_file(path, stack).map_err(|source| UpError::ReadyFile { path: path.clone(), source })?;
    }
    look_after(stack, screen).await
}

/// Restarts what dies, as long as that does not happen all the time.
async fn look_after(stack: &mut Stack, screen: &Screen) -> Result<(), UpError> {
    let mut restarts: Vec<Instant> = Vec::with_capacity(RESTARTS_MAX);
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some((which, death)) = find_dead(stack)? else { continue };
        restarts.retain(|at| at.elapsed() < RESTART_WINDOW);
        if restarts.len() == RESTARTS_MAX {
            return Err(UpError::KeepsDying(death));
        }
        restarts.push(Instant::now());
        screen.line(format!("{death}\n  Starting it again."))?;
        match which {
            Dead::Store => stack.restart_store().await?,
            Dead::Engine(index) => stack.restart_engine(index).await?,
            Dead::Router => stack.restart_router().await?,
        }
        screen.line("  It is ready again.")?;
    }
}

#[derive(Debug, Clone, Copy)]
enum Dead {
    Store,
    Engine(usize),
    Router,
}

fn find_dead(stack: &mut Stack) -> Result<Option<(Dead, SuperviseError)>, SuperviseError> {
    if let Some(status) = stack.store.ended()? {
        return Ok(Some((Dead::Store, stack.store.ended_error(status))));
    }
    for (index, engine) in stack.engines.iter_mut().enumerate() {
        if let Some(status) = engine.ended()? {
            return Ok(Some((Dead::Engine(index), engine.ended_error(status))));
        }
    }
    let status = stack.router.ended()?;
    Ok(status.map(|status| (Dead::Router, stack.router.ended_error(status))))
}

fn check_listen(listen: SocketAddr) -> Result<(), UpError> {
    if !listen.ip().is_loopback() {
        return Err(UpError::NotLoopback(listen));
    }
    // The router binds it for good; this finds out before the weights are read.
    match TcpListener::bind(listen) {
        Ok(_) => Ok(()),
        Err(source) if source.kind() == io::ErrorKind::AddrInUse => Err(UpError::PortInUse { listen }),
        Err(source) => Err(UpError::Listen { listen, source }),
    }
}

fn greeting(stack: &Stack) -> String {
    let (url, settings) = (stack.url(), stack.settings());
    let Checkpoint { name, random, .. } = &settings.checkpoint;
    let note = if *random { "   (random weights: it shows the wiring, its answers are noise)" } else { "" };
    let engines: Vec<&str> = stack.engines.iter().map(|engine| engine.address.http.as_str()).collect();
    let body = |extra: &str| {
        format!(
            r#"{{"model": {}, "messages": [{{"role": "user", "content": "What is light?"}}], "max_tokens": 24{extra}}}"#,
            serde_json::Value::from(name.as_str())
        )
    };
    format!(
        "Hearth is up.\n\n  API      {url}/v1\n  model    {name}{note}\n  engines  {}\n  store    http {}  grpc {}\n  logs     {}\n\n\
         Ask it something:\n\n  curl {url}/v1/chat/completions -H 'content-type: application/json' \\\n    -d '{}'\n\n\
         or watch the answer arrive:\n\n  curl -N {url}/v1/chat/completions -H 'content-type: application/json' \\\n    -d '{}'\n\n\
         Ctrl-C stops all of it.",
        engines.join("  "),
        stack.store.address.http,
        stack.store.address.grpc,
        settings.dirs.logs().display(),
        quoted(&body("")),
        quoted(&body(r#", "stream": true"#)),
    )
}

/// For use between single quotes of a shell.
fn quoted(text: &str) -> String {
    text.replace('\'', r"'\''")
}

/// What an earlier run wrote says nothing about this one.
fn remove_ready_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write_ready_file(path: &Path, stack: &Stack) -> io::Result<()> {
    let ready = Ready {
        url: stack.url(),
        model: &stack.settings().checkpoint.name,
        engines: stack.engines.iter().map(|engine| format!("http://{}", engine.address.http)).collect(),
        store: &stack.store.address,
    };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    serde_json::to_writer(&mut file, &ready)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_said_with_a_way_out() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = check_listen(taken.local_addr().unwrap()).unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains("--listen 127.0.0.1:PORT"), "{error}");
        assert!(check_listen("127.0.0.1:0".parse().unwrap()).is_ok());
    }

    #[test]
    fn other_machines_are_kept_out() {
        for open in ["0.0.0.0:0", "[::]:0", "10.0.0.1:80"] {
            assert!(matches!(check_listen(open.parse().unwrap()), Err(UpError::NotLoopback(_))), "{open}");
        }
    }

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        let text = "it's \"$HOME\" \\ `x`";
        let script = format!("printf %s '{}'", quoted(text));
        let output = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
    }
}
