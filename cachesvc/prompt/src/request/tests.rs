//! Requests as clients send them, and as they should not.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn chat_with(field: &str, value: Value) -> Result<Request, RequestError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body[field] = value;
    Request::parse(Endpoint::Chat, body.to_string().as_bytes())
}

fn completion_with(field: &str, value: Value) -> Result<Request, RequestError> {
    let mut body = json!({"model": "m", "prompt": "hi"});
    body[field] = value;
    Request::parse(Endpoint::Completions, body.to_string().as_bytes())
}

fn raw(body: &str) -> RequestError {
    Request::parse(Endpoint::Chat, body.as_bytes()).expect_err(body)
}

#[test]
fn a_full_chat_request() {
    let body = json!({
        "model": "m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "7", "tool_call_id": "1"},
        ],
        "stream": true, "stream_options": {"include_usage": true},
        "max_tokens": 10, "max_completion_tokens": 20, "temperature": 0.5, "top_p": 0.9, "top_k": 40,
        "seed": -1, "presence_penalty": 1, "frequency_penalty": -2, "stop": ["x", "y"], "n": 1,
        "logprobs": false, "top_logprobs": null, "tools": [], "logit_bias": {}, "response_format": {"type": "text"},
        "cache_salt": "s", "user": "me", "ignore_eos": true, "some_new_field": {"deep": [1]},
    });
    let request = Request::parse(Endpoint::Chat, body.to_string().as_bytes()).expect("valid");
    assert_eq!(request.completion_tokens_max, Some(20));
    assert_eq!(request.streaming, Streaming::On { usage: true });
    assert_eq!(request.stop, ["x", "y"]);
    assert_eq!(request.cache_salt.as_deref(), Some("s"));
    assert!(request.ignore_eos);
    assert_eq!(request.sampling.seed, Some(u64::MAX));
    assert_eq!((request.sampling.presence_penalty, request.sampling.frequency_penalty), (1.0, -2.0));
    let Input::Chat { messages, .. } = request.input else { panic!("not a chat") };
    assert_eq!(messages[1].content, "a\nb");
    assert_eq!(messages[2].content, "");
    assert_eq!(messages[2].tool_calls[0].function.name, "f");
}

#[test]
fn prompts_in_every_form() {
    let input = |prompt| completion_with("prompt", prompt).map(|request| request.input);
    assert_eq!(input(json!("text")).expect("valid"), Input::Text("text".to_owned()));
    assert_eq!(input(json!(["text"])).expect("valid"), Input::Text("text".to_owned()));
    assert_eq!(input(json!([1, 2])).expect("valid"), Input::Tokens(vec![1, 2]));
    assert_eq!(input(json!([[1, 2]])).expect("valid"), Input::Tokens(vec![1, 2]));
    for refused in [
        json!(["a", "b"]),
        json!([[1], [2]]),
        json!([1, "a"]),
        json!(["a", 1]),
        json!([-1]),
        json!([1.5]),
        json!([4_294_967_296u64]),
        json!({"a": 1}),
        json!(7),
        json!([[[1]]]),
        json!([[]]),
        json!([]),
        json!(""),
        json!([""]),
        json!(null),
    ] {
        let error = input(refused.clone()).expect_err(&refused.to_string());
        assert_eq!(error.status(), 400);
        assert!(
            error.param().is_some_and(|p| p.starts_with("prompt")),
            "{refused}: {error} {:?}",
            error.param()
        );
    }
}

#[test]
fn numbers_out_of_range_blame_their_field() {
    let cases = [
        ("temperature", json!(-0.1)),
        ("temperature", json!(2.1)),
        ("temperature", json!(1e300)),
        ("top_p", json!(0)),
        ("top_p", json!(1.01)),
        ("top_p", json!(-1)),
        ("top_k", json!(-2)),
        ("min_p", json!(2)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-5)),
        ("max_completion_tokens", json!(0)),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!(-3)),
        ("n", json!(0)),
        ("n", json!(2)),
        ("temperature", json!("hot")),
        ("max_tokens", json!(1.5)),
        ("max_tokens", json!("10")),
        ("max_tokens", json!(1e30)),
        ("seed", json!(1.5)),
        ("seed", json!("x")),
        ("stream", json!("yes")),
        ("stop", json!(["a", "b", "c", "d", "e"])),
        ("stop", json!(5)),
        ("stop", json!("x".repeat(STOP_BYTES_MAX + 1))),
        ("cache_salt", json!("")),
        ("cache_salt", json!(5)),
        ("model", json!(5)),
        ("user", json!(null)),
    ];
    for (field, value) in cases {
        match chat_with(field, value.clone()) {
            Ok(_) => assert_eq!(field, "user", "{field} {value} was taken"),
            Err(error) => {
                assert_eq!((error.status(), error.param()), (400, Some(field)), "{value}: {error}");
                assert!(error.to_string().contains(field), "{error}");
            }
        }
    }
}

#[test]
fn numbers_that_are_none_are_refused() {
    for body in ["1e400", "-1e400", "NaN", "Infinity", "1e99999999999"] {
        let body =
            format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],"temperature":{body}}}"#);
        let error = raw(&body);
        assert!(matches!(error, RequestError::Json { .. }), "{body}: {error}");
        assert_eq!(error.param(), Some("temperature"));
    }
    // As a number of tokens, too.
    let error = raw(r#"{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":1e400}"#);
    assert_eq!((error.status(), error.param()), (400, Some("max_tokens")));
}

#[test]
fn bodies_that_are_no_requests() {
    for body in ["", "{", "[]", "null", "\"x\"", "{\"model\":\"m\"} trailing", "\u{0}", "{\"model\":\"m\",}"]
    {
        let error = raw(body);
        assert_eq!(error.status(), 400, "{body}");
    }
    assert_eq!(Request::parse(Endpoint::Chat, &[0xff, 0xfe]).expect_err("not UTF-8").status(), 400);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(chat_deep(&deep).status(), 400);
    let error = raw(r#"{"model":"m","model":"m","messages":[]}"#);
    assert!(error.to_string().contains("duplicate"), "{error}");
}

fn chat_deep(deep: &str) -> RequestError {
    raw(&format!(r#"{{"model":"m","messages":{deep}}}"#))
}

#[test]
fn messages_blame_the_part_that_is_wrong() {
    let cases = [
        (json!([]), "messages"),
        (json!("hi"), "messages"),
        (json!([{"content": "x"}]), "messages[0]"),
        (json!([{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}]), "messages[1].role"),
        (json!([{"role": "user"}]), "messages[0].content"),
        (json!([{"role": "user", "content": 5}]), "messages[0].content"),
        (
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "messages[0].content",
        ),
        (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content"),
    ];
    for (messages, param) in cases {
        let error = chat_with("messages", messages.clone()).expect_err(param);
        assert_eq!((error.status(), error.param()), (400, Some(param)), "{messages}: {error}");
    }
    let error = chat_with("messages", json!(null)).unwrap_err();
    assert!(matches!(&error, RequestError::Missing { param } if param == "messages"), "{error}");
    assert_eq!(chat_with("model", json!(null)).unwrap_err().param(), Some("model"));
}

#[test]
fn what_is_not_supported_is_refused_and_never_ignored() {
    let cases = [
        ("n", json!(3)),
        ("logprobs", json!(true)),
        ("logprobs", json!(0)),
        ("logprobs", json!(5)),
        ("top_logprobs", json!(2)),
        ("logit_bias", json!({"5": 1})),
        ("tools", json!([{"type": "function"}])),
        ("functions", json!([{}])),
        ("response_format", json!({"type": "json_object"})),
        ("echo", json!(true)),
        ("suffix", json!("x")),
        ("best_of", json!(2)),
        ("repetition_penalty", json!(1.1)),
        ("chat_template_kwargs", json!({"a": [1]})),
        ("stream_options", json!({"include_usage": true})),
    ];
    for (field, value) in cases {
        let error = chat_with(field, value).expect_err(field);
        assert_eq!(
            (error.status(), error.param(), error.code()),
            (400, Some(field), Some("unsupported_parameter"))
        );
    }
    for (field, value) in
        [("top_logprobs", json!(0)), ("best_of", json!(1)), ("repetition_penalty", json!(1.0))]
    {
        assert!(chat_with(field, value).is_ok(), "{field}");
    }
}

#[test]
fn an_unknown_model_lists_the_served() {
    let request = chat_with("model", json!("gpt")).expect("valid");
    let error = request.check_model(&["a".to_owned(), "b".to_owned()]).unwrap_err();
    assert_eq!((error.status(), error.code(), error.param()), (404, Some("model_not_found"), Some("model")));
    assert_eq!(error.to_string(), "the model `gpt` is not served here; served: a, b");
    assert!(request.check_model(&["gpt".to_owned()]).is_ok());
}

#[test]
fn the_context_says_both_numbers() {
    let request = chat_with("max_tokens", json!(50)).expect("valid");
    assert_eq!(request.completion_tokens(50, 100).expect("fits"), 50);
    let error = request.completion_tokens(51, 100).unwrap_err();
    assert_eq!((error.status(), error.code()), (400, Some("context_length_exceeded")));
    for number in ["51", "50", "100"] {
        assert!(error.to_string().contains(number), "{error}");
    }
    // A chat that does not say gets the rest, a completion a few.
    assert_eq!(chat_with("user", json!("x")).expect("valid").completion_tokens(60, 100).expect("fits"), 40);
    assert!(chat_with("user", json!("x")).expect("valid").completion_tokens(100, 100).is_err());
    let completion = completion_with("user", json!("x")).expect("valid");
    assert_eq!(completion.completion_tokens(10, 100).expect("fits"), COMPLETION_TOKENS_DEFAULT);
    assert_eq!(completion.completion_tokens(95, 100).expect("fits"), 5);
}

#[test]
fn errors_have_the_shape_of_the_api() {
    let error = chat_with("temperature", json!(9)).unwrap_err();
    let body = serde_json::to_value(error.body()).expect("serializes");
    assert_eq!(
        body,
        json!({"error": {
            "message": "`temperature` is 9; it must be between 0 and 2",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": null,
        }})
    );
}

proptest! {
    #[test]
    fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::parse(Endpoint::Chat, &body);
        let _ = Request::parse(Endpoint::Completions, &body);
    }

    #[test]
    fn a_sampling_that_is_taken_is_within_its_ranges(t in -1.0f64..4.0, p in -0.5f64..1.5, k in -5i64..100) {
        let mut body = json!({"model": "m", "prompt": "x", "temperature": t, "top_p": p});
        body["top_k"] = json!(k);
        if let Ok(request) = Request::parse(Endpoint::Completions, body.to_string().as_bytes()) {
            let sampling = request.sampling;
            prop_assert!(sampling.temperature.is_some_and(|t| (0.0..=2.0).contains(&t)));
            prop_assert!(sampling.top_p.is_some_and(|p| (0.0..=1.0).contains(&p)));
        }
    }
}
