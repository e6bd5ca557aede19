//! Some rows meet one group of keys and values, in explicit vectors.
//!
//! All functions are inlined into the one place where pulp has chosen the width of the vectors. A lane is a key in the
//! scores and an element in the sums, each summed one term after the other, so the width does not change a bit either.

use pulp::Simd;

use super::super::math::{LANES, exp, sum};
use super::KEYS;

/// What `R` rows meet.
pub(super) struct Met<'a, const R: usize> {
    /// The scaled query of each row.
    pub(super) queries: [&'a [f32]; R],
    /// For each dimension, that of all keys.
    pub(super) turned: &'a [[f32; KEYS]],
    /// (key, dimension).
    pub(super) values: &'a [f32],
    /// Each row sees so many of the keys, and no fewer than the row before it.
    pub(super) seen: [usize; R],
}

/// Brings what the rows have met so far up to date.
#[inline(always)]
pub(super) fn meet<S: Simd, const R: usize>(
    simd: S,
    met: &Met<'_, R>,
    mixed: &mut [f32],
    maximum: &mut [f32],
    total: &mut [f32],
) {
    // A group fills so many vectors: known when this is compiled, because the lanes are.
    match S::F32_LANES {
        16 => meet_vectors::<S, R, 1>(simd, met, mixed, maximum, total),
        8 => meet_vectors::<S, R, 2>(simd, met, mixed, maximum, total),
        4 => meet_vectors::<S, R, 4>(simd, met, mixed, maximum, total),
        2 => meet_vectors::<S, R, 8>(simd, met, mixed, maximum, total),
        _ => meet_vectors::<S, R, 16>(simd, met, mixed, maximum, total),
    }
}

#[inline(always)]
fn meet_vectors<S: Simd, const R: usize, const V: usize>(
    simd: S,
    met: &Met<'_, R>,
    mixed: &mut [f32],
    maximum: &mut [f32],
    total: &mut [f32],
) {
    let mut weights = scores::<S, R, V>(simd, met);
    let dim = met.turned.len();
    for i in 0..R {
        let shrink = weigh(&mut weights[i], met.seen[i], &mut maximum[i], &mut total[i]);
        if shrink != 1.0 {
            mixed[i * dim..(i + 1) * dim].iter_mut().for_each(|mixed| *mixed *= shrink);
        }
    }
    mix::<S, R, V>(simd, met, &weights, mixed);
}

/// Products of the queries with all keys, seen or not.
#[inline(always)]
fn scores<S: Simd, const R: usize, const V: usize>(simd: S, met: &Met<'_, R>) -> [[f32; KEYS]; R] {
    let dim = met.turned.len();
    let queries: [&[f32]; R] = std::array::from_fn(|i| &met.queries[i][..dim]);
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for (d, keys) in met.turned.iter().enumerate() {
        let keys = vectors::<S, V>(keys);
        for i in 0..R {
            let query = simd.splat_f32s(queries[i][d]);
            for v in 0..V {
                sums[i][v] = simd.mul_add_f32s(query, keys[v], sums[i][v]);
            }
        }
    }
    let mut scores = [[0.0; KEYS]; R];
    for i in 0..R {
        vectors_mut::<S, V>(&mut scores[i]).copy_from_slice(&sums[i]);
    }
    scores
}

/// Turns the scores of a row into weights relative to its new maximum. Returns by what the weights of everything met
/// before shrink.
#[inline(always)]
fn weigh(scores: &mut [f32; KEYS], seen: usize, maximum: &mut f32, total: &mut f32) -> f32 {
    if seen < KEYS {
        for (key, score) in scores.iter_mut().enumerate() {
            *score = if key < seen { *score } else { f32::NEG_INFINITY };
        }
    }
    let mut highest = *scores;
    let mut half = KEYS / 2;
    while half > 0 {
        for lane in 0..half {
            let other = highest[lane + half];
            highest[lane] = if highest[lane] > other { highest[lane] } else { other };
        }
        half /= 2;
    }
    let before = *maximum;
    let now = if highest[0] > before { highest[0] } else { before };
    for score in scores.iter_mut() {
        *score = exp(*score - now);
    }
    let shrink = if now > before { exp(before - now) } else { 1.0 };
    *total = *total * shrink + sum(scores);
    *maximum = now;
    shrink
}

/// Adds the weighted values. Behind the last one seen lie whatever bytes the page held before; not even times zero may
/// they take part.
#[inline(always)]
fn mix<S: Simd, const R: usize, const V: usize>(
    simd: S,
    met: &Met<'_, R>,
    weights: &[[f32; KEYS]; R],
    mixed: &mut [f32],
) {
    let dim = met.turned.len();
    let seen = met.seen[R - 1];
    for at in (0..dim).step_by(LANES) {
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        for i in 0..R {
            sums[i] = *vectors::<S, V>(lanes(&mixed[i * dim + at..]));
        }
        for (key, value) in met.values.chunks_exact(dim).take(seen).enumerate() {
            let value = vectors::<S, V>(lanes(&value[at..]));
            for i in 0..R {
                let weight = simd.splat_f32s(weights[i][key]);
                for v in 0..V {
                    sums[i][v] = simd.mul_add_f32s(weight, value[v], sums[i][v]);
                }
            }
        }
        for i in 0..R {
            let (out, _) =
                mixed[i * dim + at..].split_first_chunk_mut::<LANES>().expect("LANES divides a head");
            vectors_mut::<S, V>(out).copy_from_slice(&sums[i]);
        }
    }
}

#[inline(always)]
fn lanes(values: &[f32]) -> &[f32; LANES] {
    values.first_chunk().expect("LANES divides a head")
}

#[inline(always)]
fn vectors<S: Simd, const V: usize>(lanes: &[f32; LANES]) -> &[S::f32s; V] {
    let (vectors, _) = S::as_simd_f32s(lanes);
    vectors.first_chunk().expect("V vectors make up the lanes")
}

#[inline(always)]
fn vectors_mut<S: Simd, const V: usize>(lanes: &mut [f32; LANES]) -> &mut [S::f32s; V] {
    let (vectors, _) = S::as_mut_simd_f32s(lanes);
    vectors.first_chunk_mut().expect("V vectors make up the lanes")
}
