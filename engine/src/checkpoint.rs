//! A Hugging Face checkpoint directory: what it holds, whether it can be run, and its weights.
//!
//! Everything here is outside input. A directory that cannot be run is refused with the file at fault and
//! what to do about it; nothing is guessed.

mod config;
mod error;
mod weights;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use config::{Llama3Rope, ModelConfig};
pub use error::CheckpointError;
pub use weights::Weights;
pub(crate) use weights::expected_tensors;

/// Architectures that this engine can run, as `config.json` names them.
pub const ARCHITECTURES: &[&str] = &["LlamaForCausalLM"];

/// Longest JSON file that is read, `tokenizer.json` included.
const JSON_BYTES_MAX: u64 = 256 << 20;

/// A checkpoint directory whose files have been found to agree with each other.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The directory.
    pub dir: PathBuf,
    /// Shape of the model.
    pub config: ModelConfig,
    /// Tokens that end a generation, from `generation_config.json` or else `config.json`.
    pub eos_tokens: Vec<u32>,
    /// BLAKE3 of `tokenizer.json`, in hexadecimal.
    pub tokenizer_digest: String,
    files: weights::WeightFiles,
}

impl Checkpoint {
    /// Reads everything but the weights, of which it checks names, shapes, types and file lengths.
    ///
    /// # Errors
    /// Names the file at fault and what to do.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        if !dir.is_dir() {
            return Err(CheckpointError::NoDirectory { dir: dir.to_owned() });
        }
        let config = config::parse(&dir.join("config.json"))?;
        let tokenizer_digest = check_tokenizer(&dir.join("tokenizer.json"), config.vocab)?;
        let eos_tokens = eos_tokens(dir)?;
        let files = weights::WeightFiles::open(dir, &config)?;
        Ok(Self { dir: dir.to_owned(), config, eos_tokens, tokenizer_digest, files })
    }

    /// Reads all weights into memory as `f32`. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// When a file cannot be read or is no longer what [`Self::open`] saw.
    pub fn read_weights(&self) -> Result<Weights, CheckpointError> {
        self.files.read(&self.config)
    }

    /// Name of the model for users: the last part of the directory's name.
    pub fn name(&self) -> String {
        let canonical = self.dir.canonicalize();
        let dir = canonical.as_deref().unwrap_or(&self.dir);
        dir.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
    }
}

fn read_json(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let io = |source| CheckpointError::io(path, source);
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > JSON_BYTES_MAX {
        return Err(CheckpointError::TooLarge { path: path.to_owned(), bytes, bytes_max: JSON_BYTES_MAX });
    }
    std::fs::read(path).map_err(io)
}

fn parse_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, CheckpointError> {
    serde_json::from_slice(&read_json(path)?)
        .map_err(|source| CheckpointError::Json { path: path.to_owned(), source })
}

/// Checks that every token the tokenizer can produce has an embedding, and returns the file's digest.
fn check_tokenizer(path: &Path, vocab: usize) -> Result<String, CheckpointError> {
    let bytes = read_json(path)?;
    let tokenizer = tokenizers::Tokenizer::from_bytes(&bytes)
        .map_err(|source| CheckpointError::Tokenizer { path: path.to_owned(), source })?;
    let tokens = tokenizer.get_vocab(true).values().map(|&id| id as usize + 1).max().unwrap_or(0);
    if tokens > vocab {
        return Err(CheckpointError::Vocabulary { path: path.to_owned(), tokens, vocab });
    }
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

#[derive(Deserialize)]
struct EosConfig {
    #[serde(default)]
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// From `generation_config.json`, which may be absent or silent, and then from `config.json`.
fn eos_tokens(dir: &Path) -> Result<Vec<u32>, CheckpointError> {
    for file in ["generation_config.json", "config.json"] {
        let path = dir.join(file);
        if !path.exists() {
            continue;
        }
        match parse_json::<EosConfig>(&path)?.eos_token_id {
            Some(OneOrMany::One(token)) => return Ok(vec![token]),
            Some(OneOrMany::Many(tokens)) => return Ok(tokens),
            None => {}
        }
    }
    Ok(vec![])
}
