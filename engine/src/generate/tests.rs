//! The generated checkpoint is the same everywhere, opens as a checkpoint, and appears whole or not at all.

use std::path::Path;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::testing;

fn files(dir: &Path) -> Vec<(String, blake3::Hash)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .expect("readable")
        .map(|entry| entry.expect("readable").path())
        .map(|path| {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            (name, blake3::hash(&std::fs::read(&path).expect("readable")))
        })
        .collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    files
}

#[test]
fn equal_texts_give_equal_bytes_whatever_the_threads() {
    let parent = tempfile::tempdir().expect("a directory");
    let text = testing::text();
    let generate = |name: &str, threads: usize| {
        let dir = parent.path().join(name);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| generate_shape(&dir, &text, &testing::SHAPE)).expect("generates");
        files(&dir)
    };
    let first = generate("a", 1);
    assert_eq!(first, generate("b", 1));
    assert_eq!(first, generate("c", 3));
    let names: Vec<_> = first.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);
}

#[test]
fn the_bytes_are_pinned() {
    let dir = testing::checkpoint_dir();
    let digest = Checkpoint::open(&dir).expect("opens").read_weights().expect("reads").digest;
    let expected = "7d39db1c8fa0e6c5ada1fcbf342c514fa00c49abb37c3e9d0db495761a7698f4";
    assert_eq!(digest, expected, "changing the generator makes stored blocks of old checkpoints useless");
}

#[test]
fn the_tokenizer_covers_the_vocabulary_and_every_byte() {
    let path = testing::checkpoint_dir().join("tokenizer.json");
    let tokenizer = tokenizers::Tokenizer::from_file(path).expect("opens");
    assert_eq!(tokenizer.get_vocab_size(true), VOCAB);
    for text in ["The house on the hill.\n", "naïve Ω 漢字 🙂\t\u{0}"] {
        let ids = tokenizer.encode(text, false).expect("encodes").get_ids().to_vec();
        assert_eq!(tokenizer.decode(&ids, false).expect("decodes"), text);
    }
    let ids = tokenizer.encode("<|begin|><|user|>hi<|end|>", false).expect("encodes").get_ids().to_vec();
    assert_eq!((ids[0], ids[1], ids[ids.len() - 1]), (tokenizer::BEGIN, 2, tokenizer::END));
}

#[test]
fn refuses_what_it_cannot_do_and_leaves_nothing() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = parent.path().join("model");
    let short = generate_tiny(&dir, "too short");
    assert!(matches!(short, Err(GenerateError::TextTooShort { .. })), "{short:?}");
    assert_eq!(std::fs::read_dir(parent.path()).expect("readable").count(), 0);
    std::fs::create_dir(&dir).expect("created");
    assert!(matches!(generate_tiny(&dir, "any"), Err(GenerateError::Exists { .. })));
    let orphan = parent.path().join("no/such/parent");
    let orphan = generate_shape(&orphan, &testing::text(), &testing::SHAPE);
    assert!(matches!(orphan, Err(GenerateError::Io { .. })), "{orphan:?}");
}
