//! What the tests of several modules share: a text, a small checkpoint, a model.

use std::path::PathBuf;
use std::sync::OnceLock;

use crate::checkpoint::Checkpoint;
use crate::generate::{TinyShape, generate_shape};
use crate::model::Model;

/// A model of some thousand weights beside its embeddings, with grouped heads.
pub(crate) const SHAPE: TinyShape = TinyShape {
    hidden: 64,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    ffn: 96,
    context_tokens_max: 1024,
};

/// Words made up of syllables, in sentences; enough of them to train a vocabulary on.
pub(crate) fn text() -> String {
    const SYLLABLES: [&str; 24] = [
        "ba", "den", "fo", "gri", "hul", "ja", "kem", "lo", "min", "nu", "ora", "pel", "qui", "ras", "sto",
        "tu", "ver", "wim", "xo", "ya", "zen", "chi", "sha", "thu",
    ];
    let mut state = 1u64;
    let mut next = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let words: Vec<String> =
        (0..6000).map(|_| (0..1 + next(4)).map(|_| SYLLABLES[next(SYLLABLES.len())]).collect()).collect();
    let mut text = String::new();
    for line in 0..4000 {
        for word in 0..10 {
            // Common words first, as in a language.
            let common = next(words.len()) * next(words.len()) / words.len();
            text.push_str(if word == 0 { "" } else { " " });
            text.push_str(&words[common]);
        }
        text.push_str(if line % 5 == 4 { ".\n\n" } else { ",\n" });
    }
    text
}

/// The directory of a checkpoint of [`SHAPE`], generated once per process.
pub(crate) fn checkpoint_dir() -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        generate_shape(&dir.path().join("tiny"), &text(), &SHAPE).expect("generates");
        dir
    });
    dir.path().join("tiny")
}

/// A model of [`SHAPE`].
pub(crate) fn model() -> Model {
    let checkpoint = Checkpoint::open(&checkpoint_dir()).expect("opens");
    Model::new(&checkpoint.config, checkpoint.read_weights().expect("reads")).expect("a model")
}

/// Some tokens, different for each seed.
pub(crate) fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        5 + (state >> 33) as u32 % 4091
    };
    (0..count).map(next).collect()
}
