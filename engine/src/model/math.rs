//! Functions of single rows, each computed in one fixed order.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::linear::Rows;

/// Sums run over this many lanes at once. Fixed, so that every machine sums in the same order.
pub(super) const LANES: usize = 16;

/// Runs `op` compiled for the widest vectors of this machine. `op` must be `#[inline(always)]`, and so must all
/// that it calls in its loops: what is not inlined is compiled for the oldest machine, where a fused
/// multiply-add is a call.
pub(super) fn vectorized(op: impl FnMut()) {
    struct Op<F>(F);
    impl<F: FnMut()> WithSimd for Op<F> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) {
            (self.0)();
        }
    }
    Arch::new().dispatch(Op(op));
}

/// Each row divided by the root of its mean square, times `weight`.
pub(super) fn rms_norm(rows: &Rows, weight: &[f32], eps: f32) -> Rows {
    let mut values = vec![0.0; rows.values.len()];
    let pairs = values.par_chunks_exact_mut(rows.width).zip(rows.values.par_chunks_exact(rows.width));
    pairs.for_each(|(out, row)| {
        vectorized(
            #[inline(always)]
            || {
                let scale = 1.0 / (sum_of_squares(row) / row.len() as f32 + eps).sqrt();
                for ((out, x), weight) in out.iter_mut().zip(row).zip(weight) {
                    *out = x * scale * weight;
                }
            },
        );
    });
    Rows { values, width: rows.width }
}

/// Adds `rows` to `to`.
pub(super) fn add(to: &mut Rows, rows: &Rows) {
    vectorized(
        #[inline(always)]
        || to.values.iter_mut().zip(&rows.values).for_each(|(to, value)| *to += value),
    );
}

/// Rows hold a gate and then as many values: `silu(gate) * value`.
pub(super) fn silu_gate(rows: &Rows) -> Rows {
    let width = rows.width / 2;
    let mut values = vec![0.0; rows.values.len() / 2];
    let pairs = values.par_chunks_exact_mut(width).zip(rows.values.par_chunks_exact(rows.width));
    pairs.for_each(|(out, row)| {
        vectorized(
            #[inline(always)]
            || {
                let (gate, up) = row.split_at(width);
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = gate / (1.0 + exp(-gate)) * up;
                }
            },
        );
    });
    Rows { values, width }
}

#[inline(always)]
fn sum_of_squares(row: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = x.mul_add(*x, *lane);
        }
    }
    rest.iter().fold(sum(&lanes), |sum, x| x.mul_add(*x, sum))
}

/// Sum of the lanes, halving them.
#[inline(always)]
pub(super) fn sum(lanes: &[f32; LANES]) -> f32 {
    let mut lanes = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `e^x` to about one unit in the last place, in operations that vectorise and round alike on every machine.
/// Below the smallest normal number the result is 0.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // e^x = 2^n * e^r with |r| <= ln 2 / 2; ln 2 is split in two for an exact reduction.
    const LOW: f32 = -87.0;
    const HIGH: f32 = 88.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding and subtracting it rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    let bounded = if x > HIGH { HIGH } else { x };
    let bounded = if bounded < LOW { LOW } else { bounded };
    let shifted = bounded.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, bounded));
    let mut p = 1.987_569_1e-4_f32;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, coefficient);
    }
    let p = p.mul_add(r * r, r) + 1.0;
    let two_to_n = f32::from_bits((((n as i32) + 127) << 23) as u32);
    if x < LOW { 0.0 } else { p * two_to_n }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        let mut x = -86.9f32;
        while x < 88.0 {
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 3e-7, "exp({x}) = {ours}, not {exact}");
            x += 0.0137;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e9), 0.0);
        assert!(exp(1e9).is_finite());
    }

    #[test]
    fn norm_and_gate_by_hand() {
        let rows = Rows { values: vec![3.0, 4.0], width: 2 };
        let norm = rms_norm(&rows, &[1.0, 2.0], 0.0);
        let root = 12.5f32.sqrt();
        assert!((norm.values[0] - 3.0 / root).abs() < 1e-6 && (norm.values[1] - 8.0 / root).abs() < 1e-6);
        let gated = silu_gate(&Rows { values: vec![0.0, 2.0, 5.0, 3.0], width: 4 });
        assert_eq!(gated.values[0], 0.0);
        assert!((gated.values[1] - 6.0 / (1.0 + (-2.0f32).exp())).abs() < 1e-5);
    }
}
