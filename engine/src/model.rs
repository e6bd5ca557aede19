//! The Llama forward pass over paged KV, in `f32`.
//!
//! One promise shapes it: **the result of a token depends on the tokens before it and on nothing else**,
//! bit for bit. How a prompt was cut into chunks, what else ran in the same step, how many threads took
//! part, and whether the KV before it was computed here or loaded make no difference. Matrix products keep
//! it by the shape they are called with (see [`linear`]), attention by walking the pages one by one in
//! their absolute order (see [`attention`]).

mod attention;
mod linear;
mod math;
mod rope;

#[cfg(test)]
mod tests;

use crate::checkpoint::{ModelConfig, Weights};
use crate::kv::pages::{PageId, Pages};
use crate::sample::SampleError;
pub(crate) use attention::KEYS;
use linear::{Linear, Rows};
use rope::Rope;

/// Why a forward pass failed. Our bug, or broken weights.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The tensor library refused an operation.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// The logits cannot be sampled from.
    #[error(transparent)]
    Sample(#[from] SampleError),
}

/// Consecutive tokens of one sequence to be computed in a step.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// The tokens.
    pub tokens: &'a [u32],
    /// Position of the first of them. The KV of all positions before it is in the pages.
    pub first: usize,
    /// Pages of the sequence from position 0 on, up to and including these tokens.
    pub pages: &'a [PageId],
    /// Whether the logits after the last token are wanted.
    pub logits: bool,
}

/// A Llama model with its weights in memory.
pub struct Model {
    config: ModelConfig,
    embedding: Vec<f32>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Linear,
    rope: Rope,
}

struct Layer {
    attention_norm: Vec<f32>,
    qkv: Linear,
    output: Linear,
    ffn_norm: Vec<f32>,
    gate_up: Linear,
    down: Linear,
}

impl Model {
    /// Brings weights into the form they are computed with. Takes them, so that they exist only once.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn new(config: &ModelConfig, mut weights: Weights) -> Result<Self, ModelError> {
        let embedding = weights.take("model.embed_tokens.weight");
        let layers = (0..config.layers)
            .map(|layer| Layer::new(config, &mut weights, layer))
            .collect::<Result<_, _>>()?;
        let norm = weights.take("model.norm.weight");
        let head = if config.tie_embeddings {
            Linear::new(config.hidden, &[&embedding], None)?
        } else {
            Linear::new(config.hidden, &[&weights.take("lm_head.weight")], None)?
        };
        Ok(Self { config: config.clone(), embedding, layers, norm, head, rope: Rope::new(config) })
    }

    /// Shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Computes the segments, writes their keys and values into their pages, and returns, for each segment
    /// in order, the logits after its last token if it asked for them.
    ///
    /// No two segments may write into the same page. Blocks for the whole computation.
    ///
    /// # Errors
    /// When a tensor operation fails; pages of these segments are then in an unknown state.
    pub fn forward(
        &self,
        segments: &[Segment<'_>],
        pages: &mut Pages,
    ) -> Result<Vec<Option<Vec<f32>>>, ModelError> {
        let mut hidden = self.embed(segments);
        let turns = self.rope.turns(segments);
        for (index, layer) in self.layers.iter().enumerate() {
            let x = math::rms_norm(&hidden, &layer.attention_norm, self.config.rms_eps);
            let mut qkv = layer.qkv.apply(x)?;
            self.rope.apply(&mut qkv, &turns, self.config.heads + self.config.kv_heads);
            self.store(&qkv, segments, index, pages);
            let mixed = attention::attend(&self.config, &qkv, segments, (index, pages));
            math::add(&mut hidden, &layer.output.apply(mixed)?);
            let x = math::rms_norm(&hidden, &layer.ffn_norm, self.config.rms_eps);
            let gated = math::silu_gate(&layer.gate_up.apply(x)?);
            math::add(&mut hidden, &layer.down.apply(gated)?);
        }
        self.logits(&hidden, segments)
    }

    fn embed(&self, segments: &[Segment<'_>]) -> Rows {
        let width = self.config.hidden;
        let mut values = Vec::with_capacity(segments.iter().map(|s| s.tokens.len()).sum::<usize>() * width);
        for &token in segments.iter().flat_map(|segment| segment.tokens) {
            let at = token as usize * width;
            values.extend_from_slice(&self.embedding[at..at + width]);
        }
        Rows { values, width }
    }

    /// Copies the keys and values of the rows to their places in the pages.
    fn store(&self, qkv: &Rows, segments: &[Segment<'_>], layer: usize, pages: &mut Pages) {
        let (dim, kv_heads) = (self.config.head_dim, self.config.kv_heads);
        let mut rows = qkv.values.chunks_exact(qkv.width);
        for segment in segments {
            for position in segment.first..segment.first + segment.tokens.len() {
                let row = rows.next().expect("one row per token");
                let (_, kv) = row.split_at(self.config.heads * dim);
                let (keys, values) = kv.split_at(kv_heads * dim);
                let page = segment.pages[position / pages.page_tokens()];
                let token = position % pages.page_tokens();
                for head in 0..kv_heads {
                    let span = head * dim..(head + 1) * dim;
                    pages.write_token(page, (layer, head, token), &keys[span.clone()], &values[span]);
                }
            }
        }
    }

    /// Logits of the last rows of those segments that asked for them.
    fn logits(&self, hidden: &Rows, segments: &[Segment<'_>]) -> Result<Vec<Option<Vec<f32>>>, ModelError> {
        let width = self.config.hidden;
        let mut last = Rows { values: vec![], width };
        let mut end = 0;
        for segment in segments {
            end += segment.tokens.len();
            if segment.logits {
                last.values.extend_from_slice(&hidden.values[(end - 1) * width..end * width]);
            }
        }
        if last.values.is_empty() {
            return Ok(segments.iter().map(|_| None).collect());
        }
        let logits = self.head.apply(math::rms_norm(&last, &self.norm, self.config.rms_eps))?;
        let mut rows = logits.values.chunks_exact(logits.width).map(<[f32]>::to_vec);
        Ok(segments.iter().map(|segment| if segment.logits { rows.next() } else { None }).collect())
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Layer {
    fn new(config: &ModelConfig, weights: &mut Weights, layer: usize) -> Result<Self, ModelError> {
        let mut projections = |block: &str, names: &[&str], inputs: usize, biased: bool| {
            let mut take = |name: &&str, part: &str| {
                weights.take(&format!("model.layers.{layer}.{block}.{name}.{part}"))
            };
            let matrices: Vec<Vec<f32>> = names.iter().map(|name| take(name, "weight")).collect();
            let bias = biased.then(|| names.iter().flat_map(|name| take(name, "bias")).collect());
            let matrices: Vec<&[f32]> = matrices.iter().map(Vec::as_slice).collect();
            Linear::new(inputs, &matrices, bias)
        };
        let (attention, mlp) = (config.attention_bias, config.mlp_bias);
        let qkv = projections("self_attn", &["q_proj", "k_proj", "v_proj"], config.hidden, attention)?;
        let output = projections("self_attn", &["o_proj"], config.heads * config.head_dim, attention)?;
        let gate_up = projections("mlp", &["gate_proj", "up_proj"], config.hidden, mlp)?;
        let down = projections("mlp", &["down_proj"], config.ffn, mlp)?;
        let attention_norm = weights.take(&format!("model.layers.{layer}.input_layernorm.weight"));
        let ffn_norm = weights.take(&format!("model.layers.{layer}.post_attention_layernorm.weight"));
        Ok(Self { attention_norm, qkv, output, ffn_norm, gate_up, down })
    }
}
