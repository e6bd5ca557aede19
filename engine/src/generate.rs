//! A small Llama checkpoint made from nothing but a text: random weights in the real file formats.
//!
//! It is for wiring, not for talk. The same text gives the same bytes on every machine, so that blocks
//! which one engine stored are found by another that generated its checkpoint itself.

mod tokenizer;
mod weights;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde_json::json;

/// Tokens of the generated vocabulary, special tokens included.
pub const VOCAB: usize = 4096;

/// Shape of a checkpoint to generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TinyShape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key and value heads of a layer.
    pub kv_heads: usize,
    /// Elements of one head of one token.
    pub head_dim: usize,
    /// Inner width of the feed-forward layers.
    pub ffn: usize,
    /// Tokens of prompt and completion together.
    pub context_tokens_max: usize,
}

impl TinyShape {
    /// Large enough that prefilling 4,000 tokens takes visible time on one core: 29 million weights and
    /// 16 KiB of KV per token.
    pub const DEMO: Self = Self {
        hidden: 512,
        layers: 8,
        heads: 8,
        kv_heads: 4,
        head_dim: 64,
        ffn: 1536,
        context_tokens_max: 8192,
    };
}

/// Why no checkpoint was generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// Something is already there. Use it, or remove it first.
    #[error("{} already exists; use it as it is, or remove it to generate it again", dir.display())]
    Exists {
        /// The directory asked for.
        dir: PathBuf,
    },
    /// A file could not be written.
    #[error("{} could not be written; check its parent directory and the space on the disk", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The tokenizer could not be trained on the text.
    #[error("no tokenizer could be trained on the text; give some kilobytes of prose")]
    Train(#[source] tokenizers::Error),
    /// The text gives fewer tokens than the vocabulary needs.
    #[error("the text gives only {tokens} of {VOCAB} tokens; give some hundred kilobytes of prose")]
    TextTooShort {
        /// Tokens that training found.
        tokens: usize,
    },
    /// The weights could not be serialised.
    #[error("the weights could not be written; check the space on the disk")]
    Weights(#[from] safetensors::SafeTensorError),
}

/// Generates the demo checkpoint into `dir`, which must not exist yet; its parent must.
///
/// All files appear at once or not at all. Blocks for some seconds, mostly on training the tokenizer.
///
/// # Errors
/// See [`GenerateError`]; nothing is left behind.
pub fn generate_tiny(dir: &Path, text: &str) -> Result<(), GenerateError> {
    generate_shape(dir, text, &TinyShape::DEMO)
}

/// As [`generate_tiny`], with another shape.
///
/// # Errors
/// See [`GenerateError`]; nothing is left behind.
pub fn generate_shape(dir: &Path, text: &str, shape: &TinyShape) -> Result<(), GenerateError> {
    if dir.exists() {
        return Err(GenerateError::Exists { dir: dir.to_owned() });
    }
    let tokenizer = tokenizer::train(text)?;
    let staging = Staging::create(dir)?;
    staging.write("config.json", &pretty(&config_json(shape)))?;
    staging.write("generation_config.json", &pretty(&generation_json()))?;
    staging.write("tokenizer.json", tokenizer.as_bytes())?;
    staging.write("tokenizer_config.json", &pretty(&tokenizer::config_json(shape.context_tokens_max)))?;
    staging.write("model.safetensors", &weights::serialize(shape)?)?;
    staging.publish(dir)
}

fn config_json(shape: &TinyShape) -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn,
        "vocab_size": VOCAB,
        "max_position_embeddings": shape.context_tokens_max,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": null,
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": false,
        "bos_token_id": tokenizer::BEGIN,
        "eos_token_id": tokenizer::END,
        "torch_dtype": "bfloat16",
    })
}

fn generation_json() -> serde_json::Value {
    json!({ "bos_token_id": tokenizer::BEGIN, "eos_token_id": tokenizer::END, "do_sample": false })
}

fn pretty(value: &serde_json::Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("a JSON value serialises");
    bytes.push(b'\n');
    bytes
}

/// The directory while it is being filled. Dropping it removes what was written.
struct Staging {
    path: PathBuf,
}

impl Staging {
    fn create(dir: &Path) -> Result<Self, GenerateError> {
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{}", std::process::id()));
        let path = dir.with_file_name(name);
        match std::fs::create_dir(&path) {
            Ok(()) => Ok(Self { path }),
            Err(source) => Err(GenerateError::Io { path, source }),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), GenerateError> {
        let path = self.path.join(name);
        let written = std::fs::File::create_new(&path).and_then(|mut file| {
            std::io::Write::write_all(&mut file, bytes)?;
            file.sync_all()
        });
        written.map_err(|source| GenerateError::Io { path, source })
    }

    fn publish(self, dir: &Path) -> Result<(), GenerateError> {
        match std::fs::rename(&self.path, dir) {
            Ok(()) => Ok(()),
            // Another process generated the same bytes meanwhile.
            Err(_) if dir.join("config.json").exists() => Ok(()),
            Err(source) => Err(GenerateError::Io { path: dir.to_owned(), source }),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After publishing there is nothing at this path any more.
        std::fs::remove_dir_all(&self.path).ok();
    }
}
