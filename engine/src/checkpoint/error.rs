//! Why a checkpoint directory cannot be run, and what to do about it.

use std::path::{Path, PathBuf};

use super::ARCHITECTURES;

/// Why a checkpoint directory cannot be run. Each message names the file and the next step.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// There is no such directory.
    #[error("{} is not a directory; give the directory of a Hugging Face checkpoint", dir.display())]
    NoDirectory {
        /// What was given.
        dir: PathBuf,
    },
    /// A file that every checkpoint has is not there.
    #[error("{} is missing; download the checkpoint again, complete", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("{} cannot be read; check its permissions and the disk", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file is larger than any that a checkpoint has.
    #[error("{} has {bytes} bytes, over the limit of {bytes_max}; is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A JSON file does not parse, or lacks a field.
    #[error("{} is not what a checkpoint has there; download it again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The model is of a kind that this engine does not run.
    #[error(
        "{} names the architecture {found:?}; this engine runs {}",
        path.display(), ARCHITECTURES.join(", ")
    )]
    Architecture {
        /// The configuration.
        path: PathBuf,
        /// What it names.
        found: Vec<String>,
    },
    /// The model uses something that this engine does not compute.
    #[error("{}: {field} is {found}; this engine takes {supported}", path.display())]
    Unsupported {
        /// The configuration.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        supported: &'static str,
    },
    /// `tokenizer.json` does not parse.
    #[error("{} is not a tokenizer; download it again", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: tokenizers::Error,
    },
    /// The tokenizer can produce tokens that have no embedding.
    #[error(
        "{} has tokens up to {tokens} and config.json says vocab_size {vocab}; \
         the two belong to different models: take both from one checkpoint", path.display()
    )]
    Vocabulary {
        /// The tokenizer.
        path: PathBuf,
        /// One more than its largest token.
        tokens: usize,
        /// The model's vocabulary.
        vocab: usize,
    },
    /// A weight file is no safetensors file, or is shorter or longer than its header says.
    #[error("{} is damaged ({reason}); download it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: Damage,
    },
    /// A tensor that the architecture needs is in no weight file.
    #[error("tensor {tensor} is not in {}; download the checkpoint again, complete", path.display())]
    NoTensor {
        /// The tensor.
        tensor: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A tensor has another shape than the configuration says.
    #[error(
        "tensor {tensor} in {} has shape {found:?} and config.json asks for {expected:?}; \
         weights and config.json belong to different models", path.display()
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its file.
        path: PathBuf,
        /// Its shape.
        found: Vec<usize>,
        /// The shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor has a type that this engine does not read.
    #[error("tensor {tensor} in {} is {found}; this engine reads F32, F16 and BF16", path.display())]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its file.
        path: PathBuf,
        /// Its type.
        found: String,
    },
}

impl CheckpointError {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            std::io::ErrorKind::NotFound => Self::Missing { path },
            _ => Self::Io { path, source },
        }
    }
}

/// What is wrong with a weight file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The length is not the one that the header tells.
    #[error("it has {found} bytes and its header tells of {expected}")]
    Length {
        /// Bytes in the file.
        found: u64,
        /// Bytes by the header.
        expected: u64,
    },
    /// The header cannot be read.
    #[error("its header is not that of a safetensors file")]
    Header,
    /// The file changed between two readings.
    #[error("it changed while it was read")]
    Changed,
}
