//! Random weights whose greedy output depends on the whole context.

use std::collections::HashMap;

use half::bf16;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};

use super::tokenizer::SPECIAL_COUNT;
use super::{GenerateError, TinyShape, VOCAB};
use crate::checkpoint::{ModelConfig, expected_tensors};

/// Queries and keys are this much larger than what keeps the scale, so that attention picks out a few
/// tokens instead of averaging the whole context away.
const QUERY_KEY_GAIN: f32 = 2.0;
/// Logits are this much larger, so that the most likely token stands out.
const HEAD_GAIN: f32 = 3.0;

/// All tensors as one safetensors file, in BF16.
pub(super) fn serialize(shape: &TinyShape) -> Result<Vec<u8>, GenerateError> {
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = expected_tensors(&config(shape))
        .into_iter()
        .map(|(name, shape)| {
            let bytes = values(&name, &shape);
            (name, shape, bytes)
        })
        .collect();
    let mut views = vec![];
    for (name, shape, bytes) in &tensors {
        views.push((name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes)?));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}

fn config(shape: &TinyShape) -> ModelConfig {
    ModelConfig {
        hidden: shape.hidden,
        layers: shape.layers,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        ffn: shape.ffn,
        vocab: VOCAB,
        context_tokens_max: shape.context_tokens_max,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        attention_bias: false,
        mlp_bias: false,
        tie_embeddings: false,
    }
}

/// Little-endian BF16 values of a tensor. They depend on its name and on nothing else.
fn values(name: &str, shape: &[usize]) -> Vec<u8> {
    let count: usize = shape.iter().product();
    if name.ends_with("norm.weight") {
        return bf16::ONE.to_le_bytes().repeat(count);
    }
    let fan_in = shape[shape.len() - 1];
    let deviation =
        if name == "model.embed_tokens.weight" { 1.0 } else { gain(name) / (fan_in as f32).sqrt() };
    let digest = blake3::hash(name.as_bytes());
    let seed = u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("a digest has 32 bytes"));
    let mut bytes = vec![0; count * 2];
    bytes.par_chunks_mut(2 * fan_in).enumerate().for_each(|(row, bytes)| {
        // Special tokens are never the most likely ones: a generation runs to its limit.
        if name == "lm_head.weight" && row < SPECIAL_COUNT {
            return;
        }
        for (column, out) in bytes.chunks_exact_mut(2).enumerate() {
            let index = (row * fan_in + column) as u64;
            out.copy_from_slice(&bf16::from_f32(deviation * bell(seed, index)).to_le_bytes());
        }
    });
    bytes
}

fn gain(name: &str) -> f32 {
    if name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight") {
        QUERY_KEY_GAIN
    } else if name == "lm_head.weight" {
        HEAD_GAIN
    } else {
        1.0
    }
}

/// Value `index` of a stream of bell-shaped numbers with mean 0 and deviation 1: the sum of four uniform
/// ones, which needs no function that differs between machines.
fn bell(seed: u64, index: u64) -> f32 {
    let bits = splitmix(seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let sum: u32 = (0..4).map(|part| (bits >> (16 * part)) as u32 & 0xffff).sum();
    // Four uniform numbers of 16 bits have a mean of 2 * 65535 and a deviation of 65536 / sqrt(3).
    const INVERSE_DEVIATION: f32 = 1.732_050_8 / 65_536.0;
    (sum as f32 - 131_070.0) * INVERSE_DEVIATION
}

/// The finaliser of SplitMix64: every output bit depends on every input bit.
fn splitmix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
