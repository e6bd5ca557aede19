//! The tokenizer over the model directory in `tests/model`.

use std::path::PathBuf;

use super::*;

fn tokenizer() -> Tokenizer {
    let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model");
    Tokenizer::load(&dir).expect("the model's tokenizer")
}

#[test]
fn decodes_what_it_encoded_without_the_specials() {
    let tokenizer = tokenizer();
    for text in ["hello there", " leading", "😀 mixed — ünïcode\n\n", ""] {
        let tokens = tokenizer.encode(text, Specials::Added).expect("tokens");
        assert_eq!(tokens[0], 0, "begins the text");
        assert_eq!(tokenizer.decode(&tokens), text);
    }
}

#[test]
fn decodes_anything_without_panic() {
    let tokenizer = tokenizer();
    let emoji = tokenizer.encode("😀", Specials::InText).expect("tokens");
    assert_eq!(tokenizer.decode(&emoji[..1]), "\u{FFFD}");
    assert_eq!(tokenizer.decode(&[u32::MAX, 1_000_000]), "");
}

#[test]
fn knows_its_size_and_its_end() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.vocab_size(), 330);
    assert_eq!(tokenizer.eos(), Some(1));
    assert_eq!(tokenizer.token("<|assistant|>"), Some(3));
}

#[test]
fn ignores_truncation_and_padding_of_the_file() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut json: serde_json::Value = serde_json::from_slice(
        &std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model/tokenizer.json"))
            .expect("read"),
    )
    .expect("JSON");
    json["truncation"] = serde_json::json!({
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
    });
    json["padding"] = serde_json::json!({
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<|begin|>"
    });
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).expect("written");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let tokens = tokenizer.encode("one two three four five six", Specials::InText).expect("tokens");
    assert_eq!(tokenizer.decode(&tokens), "one two three four five six");
}
