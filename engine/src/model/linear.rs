//! Matrix products whose rows do not depend on each other.
//!
//! The product is candle's, that is the `gemm` crate's. It sums the terms of an element in order of the inner
//! dimension, in pieces whose length depends on that dimension and not on the number of rows, **provided that**
//! the right side is stored with its columns next to each other and that there are at least two rows: a single
//! row goes to another kernel that sums in another order. So weights are stored as (inputs, outputs) and a single
//! row is padded. A test over all row counts holds this; it is why candle's version is pinned exactly.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::ModelError;

/// The fewest rows that a product is computed with.
const ROWS_MIN: usize = 2;

/// Rows of equal width, one after another.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rows {
    pub(super) values: Vec<f32>,
    /// Elements of a row.
    pub(super) width: usize,
}

/// A linear map, or several with the same input side by side.
pub(super) struct Linear {
    /// (inputs, outputs), contiguous.
    weight: Tensor,
    bias: Option<Vec<f32>>,
    inputs: usize,
    outputs: usize,
}

impl Linear {
    /// From matrices as checkpoints store them, (outputs, inputs); their outputs follow each other.
    pub(super) fn new(
        inputs: usize,
        matrices: &[&[f32]],
        bias: Option<Vec<f32>>,
    ) -> Result<Self, ModelError> {
        let rows: Vec<&[f32]> = matrices.iter().flat_map(|matrix| matrix.chunks_exact(inputs)).collect();
        let outputs = rows.len();
        let mut transposed = vec![0.0; inputs * outputs];
        transposed.par_chunks_mut(outputs).enumerate().for_each(|(input, out)| {
            for (out, row) in out.iter_mut().zip(&rows) {
                *out = row[input];
            }
        });
        let weight = Tensor::from_vec(transposed, (inputs, outputs), &Device::Cpu)?;
        Ok(Self { weight, bias, inputs, outputs })
    }

    pub(super) fn apply(&self, mut rows: Rows) -> Result<Rows, ModelError> {
        assert_eq!(rows.width, self.inputs, "rows have the width of the input");
        let count = rows.values.len() / rows.width;
        let padded = count.max(ROWS_MIN);
        rows.values.resize(padded * self.inputs, 0.0);
        let input = Tensor::from_vec(rows.values, (padded, self.inputs), &Device::Cpu)?;
        let mut values = input.matmul(&self.weight)?.flatten_all()?.to_vec1::<f32>()?;
        values.truncate(count * self.outputs);
        if let Some(bias) = &self.bias {
            for row in values.chunks_exact_mut(self.outputs) {
                row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
        }
        Ok(Rows { values, width: self.outputs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed | 1;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn a_row_is_the_same_bits_among_any_number_of_rows() {
        for (inputs, outputs) in
            [(512, 1024), (512, 512), (512, 3072), (1536, 512), (512, 4096), (48, 32), (32, 7)]
        {
            let weight = noise(inputs * outputs, 7);
            let linear = Linear::new(inputs, &[&weight], None).expect("shapes agree");
            let rows = Rows { values: noise(inputs * 160, 3), width: inputs };
            let all = linear.apply(rows.clone()).expect("shapes agree");
            for count in [1, 2, 3, 5, 8, 16, 17, 63, 64, 65, 128] {
                for first in [0, 31] {
                    let some = rows.values[first * inputs..(first + count) * inputs].to_vec();
                    let some = linear.apply(Rows { values: some, width: inputs }).expect("shapes agree");
                    let same = &all.values[first * outputs..(first + count) * outputs];
                    let equal = some.values.iter().zip(same).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(equal, "{count} rows of {inputs}x{outputs} from {first}");
                }
            }
        }
    }

    #[test]
    fn maps_side_by_side_with_bias() {
        let linear = Linear::new(2, &[&[1.0, 2.0], &[3.0, 4.0, 5.0, 6.0]], Some(vec![10.0, 20.0, 30.0]));
        let rows = linear.expect("shapes agree").apply(Rows { values: vec![1.0, -1.0], width: 2 });
        assert_eq!(rows.expect("shapes agree").values, [9.0, 19.0, 29.0]);
    }
}
