//! The order of a block's payload and the ranges that carry checksums.

use std::ops::Range;

use thiserror::Error;

use crate::header::RANGES_MAX;
use crate::identity::{CacheIdentity, LAYOUT_CANONICAL};
use crate::limit::PAYLOAD_BYTES_MAX;

/// Where things lie in the payload of one block.
///
/// Canonical order: layer, KV head, K then V, token, dimension. So one layer is one range, and so is any span of
/// heads within a layer: a tensor-parallel slice is one range per layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    layers: usize,
    kv_heads: usize,
    head_bytes: usize,
}

/// No layout can be made for an identity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The data type is not known.
    #[error("kv_dtype {0:?} is not known; use f32, f16, bf16, fp8_e4m3 or fp8_e5m2")]
    Dtype(String),
    /// The model has several attention groups.
    #[error("{0} attention groups: models with several kinds of attention are not supported yet")]
    Groups(usize),
    /// The layout is an engine's own.
    #[error("layout {0:?} is not known; use \"canonical\"")]
    Layout(String),
    /// The block is too large or has too many layers.
    #[error("a block of {bytes} bytes in {layers} layers is over the limit of {max} bytes in {RANGES_MAX} layers: use fewer block tokens", max = PAYLOAD_BYTES_MAX)]
    Size {
        /// Bytes of the payload.
        bytes: u128,
        /// Layers, each a checksum range.
        layers: usize,
    },
}

/// Bytes of one element.
fn dtype_bytes(name: &str) -> Result<u64, LayoutError> {
    match name {
        "f32" => Ok(4),
        "f16" | "bf16" => Ok(2),
        "fp8_e4m3" | "fp8_e5m2" => Ok(1),
        other => Err(LayoutError::Dtype(other.to_owned())),
    }
}

impl BlockLayout {
    /// The layout of the blocks of `identity`.
    ///
    /// # Errors
    /// When the data type or order is unknown, or a block would be over a limit.
    pub fn new(identity: &CacheIdentity) -> Result<Self, LayoutError> {
        if identity.layout != LAYOUT_CANONICAL {
            return Err(LayoutError::Layout(identity.layout.clone()));
        }
        let [group] = identity.groups.as_slice() else {
            return Err(LayoutError::Groups(identity.groups.len()));
        };
        let element = u128::from(dtype_bytes(&identity.kv_dtype)?);
        let head = 2 * u128::from(identity.block_tokens) * u128::from(group.head_dim) * element;
        let bytes = head * u128::from(group.kv_heads) * u128::from(group.layers);
        let layers = usize::try_from(group.layers).expect("validated to fit");
        if bytes == 0 || bytes > u128::from(PAYLOAD_BYTES_MAX) || layers > RANGES_MAX {
            return Err(LayoutError::Size { bytes, layers });
        }
        let fit = "bounded by PAYLOAD_BYTES_MAX";
        Ok(Self {
            layers,
            kv_heads: usize::try_from(group.kv_heads).expect(fit),
            head_bytes: usize::try_from(head).expect(fit),
        })
    }

    /// Bytes of the payload.
    pub fn payload_bytes(&self) -> usize {
        self.layers * self.layer_bytes()
    }

    /// Bytes of one layer, which is one checksum range.
    pub fn layer_bytes(&self) -> usize {
        self.kv_heads * self.head_bytes
    }

    /// Number of layers, so of checksum ranges.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Where the heads `heads` of `layer` lie. Panics when they are out of range.
    pub fn heads(&self, layer: usize, heads: Range<usize>) -> Range<usize> {
        assert!(layer < self.layers && heads.start <= heads.end && heads.end <= self.kv_heads);
        let base = layer * self.layer_bytes();
        base + heads.start * self.head_bytes..base + heads.end * self.head_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::sample;

    #[test]
    fn a_layer_is_one_range_and_heads_tile_it() {
        let layout = BlockLayout::new(&sample()).unwrap();
        assert_eq!(layout.payload_bytes(), 8 * 4 * 2 * 16 * 64 * 4);
        let mut at = 0;
        for layer in 0..layout.layers() {
            assert_eq!(layout.heads(layer, 0..4).start, at);
            for head in 0..4 {
                assert_eq!(layout.heads(layer, head..head + 1).start, at);
                at = layout.heads(layer, head..head + 1).end;
            }
        }
        assert_eq!(at, layout.payload_bytes());
    }

    #[test]
    fn what_cannot_be_laid_out_is_refused() {
        let refused = |apply: fn(&mut CacheIdentity)| {
            let mut identity = sample();
            apply(&mut identity);
            BlockLayout::new(&identity).expect_err("must be refused")
        };
        assert!(matches!(refused(|i| i.kv_dtype = "int3".into()), LayoutError::Dtype(_)));
        assert!(matches!(refused(|i| i.layout = "x".into()), LayoutError::Layout(_)));
        assert!(matches!(refused(|i| i.groups.push(i.groups[0].clone())), LayoutError::Groups(2)));
        assert!(matches!(refused(|i| i.groups[0].kv_heads = 1 << 16), LayoutError::Size { .. }));
        assert!(matches!(refused(|i| i.groups[0].layers = 1_000), LayoutError::Size { .. }));
    }
}
