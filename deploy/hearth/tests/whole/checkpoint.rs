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

/// Where it is. Made by the first test that asks; what test processes that have ended made is removed.
pub(crate) fn small() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("checkpoints");
        fs::create_dir_all(&all).unwrap();
        for entry in fs::read_dir(&all).unwrap().flatten() {
            if !Path::new("/proc").join(entry.file_name()).exists() {
                fs::remove_dir_all(entry.path()).ok();
            }
        }
        let own = all.join(std::process::id().to_string());
        fs::create_dir_all(&own).unwrap();
        generate_shape(&own.join(NAME), TEXT, &SHAPE).unwrap();
        own.join(NAME)
    })
}
