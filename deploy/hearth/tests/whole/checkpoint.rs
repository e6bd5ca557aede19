//! One small checkpoint for all tests of this binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use hearth_engine::generate::{TinyShape, generate_shape};

const TEXT: &str = include_str!("../../data/opticks.txt");
const SHAPE: TinyShape = TinyShape {
    hidden: 64,
    layers: 2,
    heads: 2,
    kv_heads: 1,
    head_dim: 32,
    ffn: 128,
    context_tokens_max: 4096,
};
/// Name that the checkpoint is served by.
pub(crate) const NAME: &str = "small";

/// Where it is. Made by the first test that asks, in place of what an earlier run made.
pub(crate) fn small() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(NAME);
        fs::remove_dir_all(&dir).ok();
        generate_shape(&dir, TEXT, &SHAPE).unwrap();
        dir
    })
}
