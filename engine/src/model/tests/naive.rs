//! The forward pass as its definition says, token by token in `f64`, with no pages, chunks or batches.

use crate::checkpoint::{ModelConfig, Weights, expected_tensors};
use crate::testing;

pub(super) fn random_weights(config: &ModelConfig) -> Weights {
    let mut seed = 0;
    Weights::from_tensors(expected_tensors(config).into_iter().map(|(name, shape)| {
        seed += 1;
        let count: usize = shape.iter().product();
        let scale = 2.0 / (*shape.last().expect("a shape") as f32).sqrt();
        let offset = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let noise = testing::tokens(count, 1000 + seed);
        let value = |token: u32| offset + scale * (token as f32 / 4096.0 - 0.5);
        (name, shape, noise.into_iter().map(value).collect())
    }))
}

fn linear(weight: &[f32], bias: Option<&Vec<f32>>, x: &[f64]) -> Vec<f64> {
    let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
    let mut out: Vec<f64> = weight.chunks_exact(x.len()).map(dot).collect();
    if let Some(bias) = bias {
        out.iter_mut().zip(bias).for_each(|(out, b)| *out += f64::from(*b));
    }
    out
}

fn norm(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x / (mean + f64::from(eps)).sqrt() * f64::from(*w)).collect()
}

fn rotate(config: &ModelConfig, head: &[f64], position: usize) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = head.to_vec();
    for i in 0..half {
        let mut frequency = config.rope_theta.powf(-2.0 * i as f64 / head.len() as f64);
        if let Some(s) = config.rope_scaling {
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            let original = s.original_max_position_embeddings;
            if wavelength > original / s.low_freq_factor {
                frequency /= s.factor;
            } else if wavelength > original / s.high_freq_factor {
                let smooth =
                    (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
                frequency = (1.0 - smooth) * frequency / s.factor + smooth * frequency;
            }
        }
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        out[i] = head[i] * cos - head[i + half] * sin;
        out[i + half] = head[i + half] * cos + head[i] * sin;
    }
    out
}

/// Logits after the last token.
pub(super) fn logits(config: &ModelConfig, mut weights: Weights, tokens: &[u32]) -> Vec<f64> {
    let embedding = weights.take("model.embed_tokens.weight");
    let row = |token: &u32| &embedding[*token as usize * config.hidden..][..config.hidden];
    let mut hidden: Vec<Vec<f64>> =
        tokens.iter().map(|token| row(token).iter().map(|x| f64::from(*x)).collect()).collect();
    for layer in 0..config.layers {
        let mut take = |name: &str| weights.take(&format!("model.layers.{layer}.{name}"));
        let mut project = |name: &str, biased: bool| {
            let weight = take(&format!("{name}.weight"));
            let bias = biased.then(|| take(&format!("{name}.bias")));
            move |x: &[f64]| linear(&weight, bias.as_ref(), x)
        };
        let [q, k, v, o] = ["q", "k", "v", "o"]
            .map(|name| project(&format!("self_attn.{name}_proj"), config.attention_bias));
        let [gate, up, down] =
            ["gate", "up", "down"].map(|name| project(&format!("mlp.{name}_proj"), config.mlp_bias));
        let (first, second) = (take("input_layernorm.weight"), take("post_attention_layernorm.weight"));
        let normed: Vec<Vec<f64>> = hidden.iter().map(|x| norm(x, &first, config.rms_eps)).collect();
        let heads = |x: Vec<f64>, position: Option<usize>| -> Vec<Vec<f64>> {
            x.chunks_exact(config.head_dim)
                .map(|head| position.map_or_else(|| head.to_vec(), |p| rotate(config, head, p)))
                .collect()
        };
        let queries: Vec<_> = normed.iter().enumerate().map(|(p, x)| heads(q(x), Some(p))).collect();
        let keys: Vec<_> = normed.iter().enumerate().map(|(p, x)| heads(k(x), Some(p))).collect();
        let values: Vec<_> = normed.iter().map(|x| heads(v(x), None)).collect();
        for position in 0..tokens.len() {
            let mixed: Vec<f64> = (0..config.heads)
                .flat_map(|head| {
                    let kv = head * config.kv_heads / config.heads;
                    attend(&queries[position][head], &keys[..=position], &values, kv)
                })
                .collect();
            hidden[position].iter_mut().zip(o(&mixed)).for_each(|(h, x)| *h += x);
            let x = norm(&hidden[position], &second, config.rms_eps);
            let gated: Vec<f64> =
                gate(&x).iter().zip(up(&x)).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            hidden[position].iter_mut().zip(down(&gated)).for_each(|(h, x)| *h += x);
        }
    }
    let last = norm(&hidden[tokens.len() - 1], &weights.take("model.norm.weight"), config.rms_eps);
    let head = if config.tie_embeddings { embedding } else { weights.take("lm_head.weight") };
    linear(&head, None, &last)
}

fn attend(query: &[f64], keys: &[Vec<Vec<f64>>], values: &[Vec<Vec<f64>>], kv: usize) -> Vec<f64> {
    let scale = (query.len() as f64).sqrt();
    let score = |key: &Vec<Vec<f64>>| query.iter().zip(&key[kv]).map(|(q, k)| q * k).sum::<f64>() / scale;
    let weights: Vec<f64> = keys.iter().map(|key| score(key).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..query.len())
        .map(|d| weights.iter().zip(values).map(|(w, value)| w * value[kv][d]).sum::<f64>() / total)
        .collect()
}
