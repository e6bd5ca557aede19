//! The checkpoint that is served when none is named: generated once, kept in a cache.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use hearth_engine::generate::{self, GenerateError, TinyShape, VOCAB};

use crate::document::OPTICKS;
use crate::lifeline::Lifeline;
use crate::scratch::{Scratch, cache_dir};
use crate::screen::Screen;
use crate::supervise::{self, Job, Process, SuperviseError};

/// Name under which the generated checkpoint is served.
pub(crate) const TINY_NAME: &str = "hearth-tiny-random";

/// Write a small Llama checkpoint with random weights, in the file formats of Hugging Face.
///
/// It answers with noise: it is there to try the whole path without a download. The same build always
/// writes the same bytes.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Directory to write config.json, model.safetensors, tokenizer.json and their kin to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    lifeline: Lifeline,
}

/// A checkpoint to serve.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// What requests call it.
    pub(crate) name: String,
    /// Whether it was generated, so that its answers are noise.
    pub(crate) random: bool,
}

/// No checkpoint to serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    /// What `--model` names is no directory with a checkpoint.
    #[error("--model {0} is no directory with a config.json; name a Hugging Face checkpoint directory")]
    NotThere(PathBuf),
    /// The cache cannot be written.
    #[error("cannot write the generated checkpoint below {path}; free some disk or set XDG_CACHE_HOME")]
    Cache {
        /// Where it was to be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The child that generates it failed.
    #[error("the checkpoint was not generated")]
    Generate(#[from] SuperviseError),
    /// The generator failed.
    #[error("cannot write a checkpoint to {path}")]
    Write {
        /// Where to.
        path: PathBuf,
        /// Why not.
        source: GenerateError,
    },
    /// The terminal is gone.
    #[error("cannot write to the terminal")]
    Screen(#[from] io::Error),
}

/// Runs `hearth tiny-model`.
pub(crate) fn run(args: &Args) -> Result<ExitCode, CheckpointError> {
    generate::generate_tiny(&args.out, OPTICKS)
        .map_err(|source| CheckpointError::Write { path: args.out.clone(), source })?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// What ties this process to another one.
    pub(crate) fn lifeline(&self) -> Lifeline {
        self.lifeline
    }
}

/// The checkpoint in `model`, or the generated one from this user's cache, made now if it is not there.
pub(crate) async fn provide(model: Option<&Path>, screen: &Screen) -> Result<Checkpoint, CheckpointError> {
    if let Some(dir) = model {
        if !dir.join("config.json").is_file() {
            return Err(CheckpointError::NotThere(dir.to_owned()));
        }
        // Children run elsewhere, and `.` has no name of its own.
        let dir = fs::canonicalize(dir).map_err(|_| CheckpointError::NotThere(dir.to_owned()))?;
        let name =
            dir.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
        return Ok(Checkpoint { dir, name, random: false });
    }
    let dir = generated(&cache_dir().join("models"), screen).await?;
    Ok(Checkpoint { dir, name: TINY_NAME.to_owned(), random: true })
}

async fn generated(models: &Path, screen: &Screen) -> Result<PathBuf, CheckpointError> {
    let dir = models.join(generated_dir_name());
    if dir.join("config.json").is_file() {
        return Ok(dir);
    }
    let cache_error = |source| CheckpointError::Cache { path: models.to_owned(), source };
    screen.line("  model    generating a small checkpoint with random weights, once; later runs find it")?;
    let partial = Scratch::new(models, "partial").map_err(cache_error)?;
    let fresh = partial.path().join("checkpoint");
    let step = screen.step("training the tokenizer on the carried text, drawing weights");
    let mut writer = Process::start(writer_job(partial.path(), &fresh))?;
    writer.success().await?;
    drop(step);
    match fs::rename(&fresh, &dir) {
        Ok(()) => {}
        // Another run was faster; it wrote the same bytes.
        Err(_) if dir.join("config.json").is_file() => {}
        Err(source) => return Err(cache_error(source)),
    }
    Ok(dir)
}

fn writer_job(partial: &Path, fresh: &Path) -> Job {
    let mut args: Vec<OsString> = vec!["tiny-model".into(), "--out".into(), fresh.into()];
    args.extend(crate::lifeline::arguments().map(OsString::from));
    Job {
        name: "the generator of the checkpoint".to_owned(),
        program: supervise::own_program(),
        args,
        log: partial.join("generate.log"),
        ready_file: partial.join("never"),
    }
}

/// Changes with everything that changes the bytes of the checkpoint.
fn generated_dir_name() -> String {
    let digest = blake3::Hasher::new()
        .update(env!("CARGO_PKG_VERSION").as_bytes())
        .update(format!("{:?} {VOCAB}", TinyShape::DEMO).as_bytes())
        .update(OPTICKS.as_bytes())
        .finalize()
        .to_hex();
    format!("tiny-random-{}", &digest[..12])
}
