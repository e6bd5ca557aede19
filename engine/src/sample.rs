//! From logits to a token: greedy, or drawn at random from what temperature, top-k, top-p and min-p leave.
//!
//! No clock and no ambient randomness: draw `n` of a request depends on its seed and on `n` alone, so
//! a request gets the same tokens whatever else runs in its batch.

use std::collections::HashMap;

use crate::request::Sampling;

/// Why no token could be chosen. Our bug, or broken weights: nothing the request could do better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// A logit is not a number, or infinitely likely.
    #[error("the model gave token {token} a logit that is not a number; its weights are damaged or overflow")]
    Broken {
        /// The token.
        token: u32,
    },
    /// There is no token to choose: no logits, or none above negative infinity.
    #[error("the model rules out every token; its weights are damaged or overflow")]
    NothingLeft,
}

/// Chooses the tokens of one request, in order.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    seed: u64,
    draws: u64,
    /// How often each token was generated; kept only when a penalty asks for it.
    generated: HashMap<u32, u32>,
    candidates: Vec<Candidate>,
}

/// A token that may be drawn. The most likely one has weight 1.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    weight: f64,
}

impl Sampler {
    /// `fallback_seed` is used when `sampling` names no seed.
    pub fn new(sampling: Sampling, fallback_seed: u64) -> Self {
        let seed = sampling.seed.unwrap_or(fallback_seed);
        Self { sampling, seed, draws: 0, generated: HashMap::new(), candidates: Vec::new() }
    }

    /// Chooses the next token and remembers it for the penalties. `logits` has one entry for each token
    /// of the vocabulary and is changed where a penalty applies.
    ///
    /// # Errors
    /// The logits are broken: see [`SampleError`].
    pub fn pick(&mut self, logits: &mut [f32]) -> Result<u32, SampleError> {
        self.penalize(logits);
        let best = most_likely(logits)?;
        let chosen = if self.sampling.temperature > 0.0 {
            self.weigh(logits, logits[best as usize]);
            self.keep_top_p();
            self.keep_min_p();
            draw(&self.candidates, unit(self.seed, self.draws)).unwrap_or(best)
        } else {
            best
        };
        self.draws += 1;
        if self.has_penalty() {
            *self.generated.entry(chosen).or_default() += 1;
        }
        Ok(chosen)
    }

    fn has_penalty(&self) -> bool {
        self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0
    }

    fn penalize(&self, logits: &mut [f32]) {
        for (&token, &count) in &self.generated {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= self.sampling.presence_penalty + self.sampling.frequency_penalty * count as f32;
            }
        }
    }

    /// Fills `candidates` with the `top_k` most likely tokens, all when there is no such limit.
    fn weigh(&mut self, logits: &[f32], best: f32) {
        let temperature = f64::from(self.sampling.temperature);
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(logits.iter().zip(0..).map(|(&logit, token)| Candidate {
            token,
            weight: ((f64::from(logit) - f64::from(best)) / temperature).exp(),
        }));
        if let Some(k) = self.sampling.top_k.filter(|&k| 0 < k && k < candidates.len()) {
            candidates.select_nth_unstable_by(k - 1, by_weight);
            candidates.truncate(k);
            // The partition leaves any order; draws walk the candidates in that of the vocabulary.
            candidates.sort_unstable_by_key(|c| c.token);
        }
    }

    /// Keeps the smallest set of candidates that reaches `top_p` of their weight.
    fn keep_top_p(&mut self) {
        /// Sorting a whole vocabulary costs more than everything else here. Candidates this light are
        /// sorted only when the others do not reach `top_p`.
        const HEAVY: f64 = 1e-4;

        let top_p = f64::from(self.sampling.top_p);
        if top_p >= 1.0 {
            return;
        }
        let candidates = &mut self.candidates;
        let reach = top_p * candidates.iter().map(|c| c.weight).sum::<f64>();
        let heavy: f64 = candidates.iter().map(|c| c.weight).filter(|&w| w >= HEAVY).sum();
        if heavy >= reach {
            candidates.retain(|c| c.weight >= HEAVY);
        }
        candidates.sort_unstable_by(by_weight);
        let mut sum = 0.0;
        let reached = candidates.iter().position(|c| {
            sum += c.weight;
            sum >= reach
        });
        candidates.truncate(reached.map_or(candidates.len(), |last| last + 1));
    }

    /// Drops candidates lighter than `min_p` of the heaviest, whose weight is 1.
    fn keep_min_p(&mut self) {
        let min_p = f64::from(self.sampling.min_p);
        if min_p > 0.0 {
            self.candidates.retain(|c| c.weight >= min_p);
        }
    }
}

/// The token with the highest logit, the first of equals.
fn most_likely(logits: &[f32]) -> Result<u32, SampleError> {
    let mut best: Option<(u32, f32)> = None;
    for (&logit, token) in logits.iter().zip(0..) {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(SampleError::Broken { token });
        }
        if best.map_or(f32::NEG_INFINITY, |(_, best)| best) < logit {
            best = Some((token, logit));
        }
    }
    best.map(|(token, _)| token).ok_or(SampleError::NothingLeft)
}

/// Heaviest first; the order of the vocabulary among equals, so that the result is the same everywhere.
fn by_weight(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

/// The candidate at the fraction `at` of the total weight.
fn draw(candidates: &[Candidate], at: f64) -> Option<u32> {
    let mut left = at * candidates.iter().map(|c| c.weight).sum::<f64>();
    for candidate in candidates {
        left -= candidate.weight;
        if left < 0.0 {
            return Some(candidate.token);
        }
    }
    // Rounding can leave a sliver beyond the last candidate.
    candidates.iter().rev().find(|c| c.weight > 0.0).map(|c| c.token)
}

/// Number `n` of the random sequence of `seed`, uniform in [0, 1).
fn unit(seed: u64, n: u64) -> f64 {
    /// 2^64 over the golden ratio: the step of the SplitMix64 generator, whose n-th value can be had
    /// without those before it.
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
    const MANTISSA_BITS: u32 = 53;
    let bits = mix(mix(seed).wrapping_add(n.wrapping_mul(STEP)));
    (bits >> (u64::BITS - MANTISSA_BITS)) as f64 / (1u64 << MANTISSA_BITS) as f64
}

/// The finalizer of SplitMix64: every input bit moves about half of the output bits.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
