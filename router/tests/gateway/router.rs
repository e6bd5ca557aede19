//! The router as the program starts it: from its command line.

use std::path::PathBuf;

use clap::Parser;
use hearth_router::cli::{Args, RunError, run};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::{soon, until};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    router: Args,
}

/// A running router.
pub(crate) struct Router {
    pub(crate) address: String,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), RunError>>,
    _dir: TempDir,
}

impl Router {
    /// Starts one with these arguments, on a free port.
    pub(crate) async fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let ready: PathBuf = dir.path().join("ready.json");
        let ready_text = ready.to_str().expect("text").to_owned();
        let mut all = vec!["--listen", "127.0.0.1:0", "--ready-file", &ready_text];
        all.extend(args);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(run(parse(&all), async {
            let _: Result<(), _> = stopped.await;
        }));
        until("the ready file", || async { ready.exists() || task.is_finished() }).await;
        assert!(!task.is_finished(), "{:?}", task.await);
        let text = std::fs::read(&ready).expect("written whole");
        let json: serde_json::Value = serde_json::from_slice(&text).expect("is JSON");
        let address = json["http"].as_str().expect("an address").to_owned();
        Self { address, stop: Some(stop), task, _dir: dir }
    }

    /// In front of these engines, without a store.
    pub(crate) async fn before(engines: &[&str]) -> Self {
        let args: Vec<&str> = engines.iter().flat_map(|engine| ["--engine", engine]).collect();
        Self::start(&args).await
    }

    /// Tells it to stop and waits for its end.
    pub(crate) async fn stop(mut self) -> Result<(), RunError> {
        self.stop.take().expect("told once").send(()).expect("still running");
        soon("the router's end", &mut self.task).await.expect("does not panic")
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Arguments as the program parses them.
pub(crate) fn parse(args: &[&str]) -> Args {
    Cli::try_parse_from(std::iter::once(&"router").chain(args))
        .unwrap_or_else(|error| panic!("{error}"))
        .router
}

/// What the program says about wrong arguments.
pub(crate) fn parse_error(args: &[&str]) -> String {
    match Cli::try_parse_from(std::iter::once(&"router").chain(args)) {
        Ok(_) => panic!("must be refused"),
        Err(error) => error.to_string(),
    }
}
