//! Rotary positions: element `i` and element `i + half` of a head turn together.

use std::f64::consts::PI;

use rayon::prelude::*;

use super::Segment;
use super::linear::Rows;
use crate::checkpoint::{Llama3Rope, ModelConfig};

pub(super) struct Rope {
    /// Radians per position, for each pair of elements.
    frequencies: Vec<f64>,
    head_dim: usize,
}

/// Cosines and sines of some positions, one row each: first all cosines, then all sines.
pub(super) struct Turns(Rows);

impl Rope {
    pub(super) fn new(config: &ModelConfig) -> Self {
        let half = config.head_dim / 2;
        let frequency = |pair: usize| {
            let plain = config.rope_theta.powf(-(pair as f64) / half as f64);
            config.rope_scaling.map_or(plain, |scaling| stretched(plain, &scaling))
        };
        Self { frequencies: (0..half).map(frequency).collect(), head_dim: config.head_dim }
    }

    /// The turns of every token of the segments, in order.
    pub(super) fn turns(&self, segments: &[Segment<'_>]) -> Turns {
        let mut values = vec![];
        for position in segments.iter().flat_map(|s| s.first..s.first + s.tokens.len()) {
            // In f64, so that the rounding to f32 hides what differs between machines.
            let angle = |frequency: &f64| position as f64 * frequency;
            values.extend(self.frequencies.iter().map(|f| angle(f).cos() as f32));
            values.extend(self.frequencies.iter().map(|f| angle(f).sin() as f32));
        }
        Turns(Rows { values, width: self.head_dim })
    }

    /// Turns the first `heads` heads of each row.
    pub(super) fn apply(&self, rows: &mut Rows, turns: &Turns, heads: usize) {
        let half = self.head_dim / 2;
        let pairs =
            rows.values.par_chunks_exact_mut(rows.width).zip(turns.0.values.par_chunks_exact(turns.0.width));
        pairs.for_each(|(row, turns)| {
            let (cosines, sines) = turns.split_at(half);
            for head in row.chunks_exact_mut(self.head_dim).take(heads) {
                let (low, high) = head.split_at_mut(half);
                for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
                    (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
                }
            }
        });
    }
}

/// Slows low frequencies by the factor, leaves high ones, and blends in between.
fn stretched(frequency: f64, scaling: &Llama3Rope) -> f64 {
    let wavelength = 2.0 * PI / frequency;
    let turns_in_context = scaling.original_max_position_embeddings / wavelength;
    let span = scaling.high_freq_factor - scaling.low_freq_factor;
    let kept = ((turns_in_context - scaling.low_freq_factor) / span).clamp(0.0, 1.0);
    frequency * (kept + (1.0 - kept) / scaling.factor)
}
