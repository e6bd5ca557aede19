//! The Llama forward pass over paged KV.

/// Why a forward pass failed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The tensor library refused an operation.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}
