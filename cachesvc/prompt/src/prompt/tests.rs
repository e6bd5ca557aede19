//! Requests to tokens over the model directory in `tests/model`, and damaged copies of it. The expected
//! tokens are those of the `transformers` library.

use serde_json::json;

use super::*;
use crate::request::Endpoint;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model")
}

fn chat(messages: serde_json::Value) -> Request {
    let body = json!({"model": "m", "messages": messages}).to_string();
    Request::parse(Endpoint::Chat, body.as_bytes()).expect("a valid request")
}

fn completion(prompt: serde_json::Value) -> Request {
    let body = json!({"model": "m", "prompt": prompt}).to_string();
    Request::parse(Endpoint::Completions, body.as_bytes()).expect("a valid request")
}

/// A copy of the model directory with one file replaced, or removed.
fn model_with(file: &str, content: Option<&str>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for entry in std::fs::read_dir(model()).expect("the model directory") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copied");
    }
    let path = dir.path().join(file);
    match content {
        Some(content) => std::fs::write(path, content).expect("written"),
        None => std::fs::remove_file(path).expect("removed"),
    }
    dir
}

#[test]
fn a_chat_becomes_the_tokens_of_transformers() {
    let prompt = Prompt::load(&model()).expect("the model loads");
    let request = chat(json!([
        {"role": "system", "content": "  be brief "},
        {"role": "user", "content": "hello there, the cat — 😀 sat"},
        {"role": "assistant", "content": [{"type": "text", "text": "stop"}]},
        {"role": "user", "content": "again <|end|> and\n"},
    ]));
    let expected = [
        0, 4, 70, 73, 225, 70, 86, 77, 73, 74, 1, 2, 317, 83, 284, 16, 264, 286, 225, 163, 227, 247, 225,
        177, 258, 251, 227, 285, 1, 3, 325, 1, 2, 69, 274, 225, 1, 267, 1, 3,
    ];
    assert_eq!(prompt.tokens(&request).expect("tokens"), expected);
}

#[test]
fn a_completion_gets_the_special_tokens_of_the_configuration() {
    let request = completion(json!("hello there 😀"));
    let begun = [0, 317, 83, 284, 225, 177, 258, 251, 227];
    assert_eq!(Prompt::load(&model()).expect("loads").tokens(&request).expect("tokens"), begun);

    let config = |add_bos: Option<bool>, add_eos: Option<bool>| {
        json!({"bos_token": "<|begin|>", "eos_token": "<|end|>", "add_bos_token": add_bos, "add_eos_token": add_eos})
            .to_string()
    };
    let tokens = |config: String| {
        let dir = model_with("tokenizer_config.json", Some(&config));
        Prompt::load(dir.path()).expect("loads").tokens(&request).expect("tokens")
    };
    // tokenizer.json itself begins a text; the configuration has the last word.
    assert_eq!(tokens(config(None, None)), begun);
    assert_eq!(tokens(config(Some(true), None)), begun);
    assert_eq!(tokens(config(Some(false), None)), begun[1..]);
    assert_eq!(tokens(config(Some(false), Some(true))), [&begun[1..], &[1]].concat());
}

#[test]
fn tokens_are_used_as_they_are_when_the_model_has_them() {
    let prompt = Prompt::load(&model()).expect("loads");
    assert_eq!(prompt.tokens(&completion(json!([5, 6, 329]))).expect("tokens"), [5, 6, 329]);
    let error = prompt.tokens(&completion(json!([5, 330]))).unwrap_err();
    assert!(matches!(error, RequestError::UnknownToken { token: 330, vocab: 330 }), "{error}");
}

#[test]
fn a_model_without_template_serves_completions_only() {
    let dir = model_with("tokenizer_config.json", None);
    let prompt = Prompt::load(dir.path()).expect("loads");
    assert!(!prompt.has_template());
    assert!(prompt.tokens(&completion(json!("hello"))).is_ok());
    let error = prompt.tokens(&chat(json!([{"role": "user", "content": "hello"}]))).unwrap_err();
    assert!(matches!(error, RequestError::NoTemplate));
    assert_eq!(error.status(), 400);
}

#[test]
fn a_template_file_wins_over_the_configuration() {
    let request = chat(json!([{"role": "user", "content": "hello"}]));
    let dir = model_with("chat_template.jinja", Some("{{ messages[0].content }}"));
    let prompt = Prompt::load(dir.path()).expect("loads");
    let plain = prompt.tokenizer().encode("hello", Specials::InText).expect("tokens");
    assert_eq!(prompt.tokens(&request).expect("tokens"), plain);

    let named = json!({"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "hello"}]});
    let dir = model_with("tokenizer_config.json", Some(&named.to_string()));
    assert_eq!(Prompt::load(dir.path()).expect("loads").tokens(&request).expect("tokens"), plain);
}

#[test]
fn a_damaged_directory_names_the_file() {
    let config = json!({"bos_token": "<absent>"}).to_string();
    let cases = [
        ("tokenizer.json", None, "cannot read"),
        ("tokenizer.json", Some("{\"version\":"), "not a tokenizer"),
        ("tokenizer.json", Some("{}"), "not a tokenizer"),
        ("tokenizer_config.json", Some("[1"), "damaged"),
        ("tokenizer_config.json", Some(config.as_str()), "no such token"),
        ("chat_template.jinja", Some("{% if %}"), "does not parse"),
        ("generation_config.json", Some("{\"temperature\": \"hot\"}"), "damaged"),
    ];
    for (file, content, reason) in cases {
        let dir = model_with(file, content);
        let error = Prompt::load(dir.path()).expect_err(file).to_string();
        assert!(error.contains(file) && error.contains(reason), "{file}: {error}");
    }
}

#[test]
fn the_model_fills_what_a_request_leaves_open() {
    let prompt = Prompt::load(&model()).expect("loads");
    let filled = prompt.sampling_defaults().fill(Sampling { top_p: Some(0.5), ..Sampling::default() });
    assert_eq!((filled.temperature, filled.top_p, filled.top_k), (Some(0.6), Some(0.5), None));
}
