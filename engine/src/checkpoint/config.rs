//! `config.json`: the shape of the model.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ARCHITECTURES, CheckpointError, parse_json};

/// Shape of a Llama model. Every count is at least one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Query heads of a layer. A multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads of a layer.
    pub kv_heads: usize,
    /// Elements of one head of one token. A multiple of 16.
    pub head_dim: usize,
    /// Inner width of the feed-forward layers.
    pub ffn: usize,
    /// Tokens with an embedding.
    pub vocab: usize,
    /// Tokens of prompt and completion together.
    pub context_tokens_max: usize,
    /// Added under the root of RMSNorm.
    pub rms_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies, if any.
    pub rope_scaling: Option<Llama3Rope>,
    /// Whether the attention projections have biases.
    pub attention_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Whether the output projection is the embedding.
    pub tie_embeddings: bool,
}

/// The `llama3` way of stretching rotary frequencies to a longer context.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Llama3Rope {
    /// By how much the low frequencies are slowed.
    pub factor: f64,
    /// Wavelengths longer than the original context over this are slowed in full.
    pub low_freq_factor: f64,
    /// Wavelengths shorter than the original context over this are left alone.
    pub high_freq_factor: f64,
    /// Context that the model was first trained on, in tokens.
    pub original_max_position_embeddings: f64,
}

impl ModelConfig {
    /// Elements of K and V of one token over all layers.
    pub fn kv_elements_per_token(&self) -> usize {
        self.layers * self.kv_heads * 2 * self.head_dim
    }

    /// The rotary parameters as text, for the cache identity.
    pub fn rope_text(&self) -> String {
        match &self.rope_scaling {
            None => format!("theta={};scaling=none", self.rope_theta),
            Some(s) => format!(
                "theta={};scaling=llama3;factor={};low={};high={};original={}",
                self.rope_theta,
                s.factor,
                s.low_freq_factor,
                s.high_freq_factor,
                s.original_max_position_embeddings
            ),
        }
    }
}

/// The file as Hugging Face writes it.
#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    quantization_config: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawLlama {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    #[serde(default = "silu")]
    hidden_act: String,
    rope_theta: Option<f64>,
    #[serde(alias = "rope_parameters")]
    rope_scaling: Option<RawRope>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
}

fn silu() -> String {
    "silu".to_owned()
}

#[derive(Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

const ROPE_THETA_DEFAULT: f64 = 10_000.0;
/// The widest dimension that any published Llama comes near to; larger ones are mistakes.
const DIMENSION_MAX: usize = 1 << 24;
/// Far beyond the deepest published model.
const LAYERS_MAX: usize = 4096;

pub(super) fn parse(path: &Path) -> Result<ModelConfig, CheckpointError> {
    let raw: Raw = parse_json(path)?;
    if !raw.architectures.iter().any(|found| ARCHITECTURES.contains(&found.as_str())) {
        return Err(CheckpointError::Architecture { path: path.to_owned(), found: raw.architectures });
    }
    if let Some(found) = raw.quantization_config.filter(|q| !q.is_null()) {
        let found = found.get("quant_method").map_or_else(|| "set".to_owned(), ToString::to_string);
        return Err(unsupported(path, "quantization_config", found, "unquantised weights"));
    }
    let llama: RawLlama = parse_json(path)?;
    let config = convert(path, llama)?;
    check(path, &config)?;
    Ok(config)
}

fn convert(path: &Path, raw: RawLlama) -> Result<ModelConfig, CheckpointError> {
    if raw.hidden_act != "silu" {
        return Err(unsupported(path, "hidden_act", raw.hidden_act, "silu"));
    }
    let heads = raw.num_attention_heads;
    let theta = raw.rope_theta.or(raw.rope_scaling.as_ref().and_then(|rope| rope.rope_theta));
    Ok(ModelConfig {
        hidden: raw.hidden_size,
        layers: raw.num_hidden_layers,
        heads,
        kv_heads: raw.num_key_value_heads.unwrap_or(heads),
        head_dim: raw.head_dim.unwrap_or(raw.hidden_size / heads.max(1)),
        ffn: raw.intermediate_size,
        vocab: raw.vocab_size,
        context_tokens_max: raw.max_position_embeddings,
        rms_eps: raw.rms_norm_eps,
        rope_theta: theta.unwrap_or(ROPE_THETA_DEFAULT),
        rope_scaling: raw.rope_scaling.map(|rope| scaling(path, &rope)).transpose()?.flatten(),
        attention_bias: raw.attention_bias,
        mlp_bias: raw.mlp_bias,
        tie_embeddings: raw.tie_word_embeddings,
    })
}

fn scaling(path: &Path, raw: &RawRope) -> Result<Option<Llama3Rope>, CheckpointError> {
    let kind = raw.rope_type.as_deref().unwrap_or("default");
    let parameters =
        (raw.factor, raw.low_freq_factor, raw.high_freq_factor, raw.original_max_position_embeddings);
    match (kind, parameters) {
        ("default", _) => Ok(None),
        ("llama3", (Some(factor), Some(low), Some(high), Some(original))) if low < high => {
            Ok(Some(Llama3Rope {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            }))
        }
        _ => Err(unsupported(
            path,
            "rope_scaling",
            kind.to_owned(),
            "none, default, or llama3 with all of its parameters",
        )),
    }
}

fn check(path: &Path, config: &ModelConfig) -> Result<(), CheckpointError> {
    if config.layers > LAYERS_MAX {
        return Err(unsupported(path, "num_hidden_layers", config.layers.to_string(), "1 to 4096"));
    }
    for (field, value) in [
        ("hidden_size", config.hidden),
        ("num_hidden_layers", config.layers),
        ("num_attention_heads", config.heads),
        ("num_key_value_heads", config.kv_heads),
        ("head_dim", config.head_dim),
        ("intermediate_size", config.ffn),
        ("vocab_size", config.vocab),
        ("max_position_embeddings", config.context_tokens_max),
    ] {
        if value == 0 || value > DIMENSION_MAX {
            return Err(unsupported(path, field, value.to_string(), "1 to 2^24"));
        }
    }
    if !config.head_dim.is_multiple_of(16) {
        let found = config.head_dim.to_string();
        return Err(unsupported(path, "head_dim", found, "multiples of 16"));
    }
    if !config.heads.is_multiple_of(config.kv_heads) {
        let found = format!("{} for {} heads", config.kv_heads, config.heads);
        return Err(unsupported(path, "num_key_value_heads", found, "a divisor of num_attention_heads"));
    }
    if !(config.rms_eps > 0.0 && config.rms_eps < 1.0) {
        return Err(unsupported(path, "rms_norm_eps", config.rms_eps.to_string(), "a small positive number"));
    }
    if !(config.rope_theta > 1.0 && config.rope_theta.is_finite()) {
        return Err(unsupported(path, "rope_theta", config.rope_theta.to_string(), "a number over 1"));
    }
    Ok(())
}

fn unsupported(path: &Path, field: &'static str, found: String, supported: &'static str) -> CheckpointError {
    CheckpointError::Unsupported { path: path.to_owned(), field, found, supported }
}
