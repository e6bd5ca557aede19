//! Requests that are refused: each with its status and an error of OpenAI's shape, and nothing submitted.

use super::*;

const INVALID: &str = "invalid_request_error";

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let face = face_saying("x");
    let cases = [
        (json!({"temperature": -1}), json!("temperature"), Value::Null),
        (json!({"max_tokens": 0}), json!("max_tokens"), Value::Null),
        (json!({"messages": []}), json!("messages"), Value::Null),
        (json!({"messages": [{"role": "user", "content": 5}]}), json!("messages[0].content"), Value::Null),
        (json!({"n": 2}), json!("n"), json!("unsupported_parameter")),
        (json!({"logprobs": true}), json!("logprobs"), json!("unsupported_parameter")),
        (json!({"max_tokens": 1000}), Value::Null, json!("context_length_exceeded")),
        // The test model's template takes no tools' results.
        (json!({"messages": [{"role": "tool", "content": "x"}]}), json!("messages"), Value::Null),
    ];
    for (extra, param, code) in cases {
        let reply = chat(&face, extra.clone()).await;
        assert_eq!(reply.error(), (400, INVALID.into(), param, code), "{extra}");
    }
    let unknown = chat(&face, json!({"model": "gpt-4"})).await;
    assert_eq!(unknown.error(), (404, INVALID.into(), json!("model"), json!("model_not_found")));
    assert!(unknown.text.contains("tiny"), "lists what is served: {}", unknown.text);
}

#[tokio::test]
async fn a_prompt_over_the_context_says_both_numbers() {
    let reply = complete(&face_saying("x"), json!({"prompt": "the cat ".repeat(200)})).await;
    assert_eq!(reply.error(), (400, INVALID.into(), Value::Null, json!("context_length_exceeded")));
    assert!(reply.text.contains("128"), "{}", reply.text);
}

#[tokio::test]
async fn bodies_that_are_no_json() {
    let face = face_saying("x");
    for body in ["", "{", "null", "[1,2", "{\"model\": NaN}", "\u{0}\u{1}"] {
        let reply = post(&face, "/v1/chat/completions", body).await;
        assert_eq!((reply.error().0, reply.error().1), (400, INVALID.to_owned()), "{body:?}");
    }
    let reply = post(&face, "/v1/completions", vec![0xff, 0xfe, 0x00]).await;
    assert_eq!(reply.error().0, 400);
}

#[tokio::test]
async fn a_number_that_is_none_is_refused() {
    let body = r#"{"model":"tiny","messages":[{"role":"user","content":"x"}],"temperature":1e400}"#;
    let reply = post(&face_saying("x"), "/v1/chat/completions", body).await;
    assert_eq!(reply.error(), (400, INVALID.into(), json!("temperature"), Value::Null));
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there() {
    let face = face_saying("x");
    let reply = get(&face, "/v1/embeddings").await;
    assert_eq!(reply.error(), (404, INVALID.into(), Value::Null, json!("unknown_url")));
    let reply = get(&face, "/v1/chat/completions").await;
    assert_eq!(reply.error(), (405, INVALID.into(), Value::Null, json!("method_not_allowed")));
    assert_eq!(reply.headers["allow"], "POST");
    assert_eq!(post(&face, "/v1/models", "").await.error().0, 405);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_unbuffered() {
    use futures_util::stream;
    let face = face_saying("x");
    // With a length the body need not be read at all.
    let request = HttpRequest::post("/v1/chat/completions")
        .header("content-length", "100000000")
        .header("expect", "100-continue")
        .body(Body::from_stream(stream::pending::<Result<&[u8], std::io::Error>>()))
        .expect("a request");
    let reply = ask(&face, request).await;
    assert_eq!(reply.error(), (413, INVALID.into(), Value::Null, json!("body_too_large")));

    // Without one it is read up to the limit, and what follows is thrown away.
    static MEBIBYTE: [u8; 1 << 20] = [b' '; 1 << 20];
    let body = Body::from_stream(stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(&MEBIBYTE[..]))));
    assert_eq!(post(&face, "/v1/chat/completions", body).await.error().0, 413);
    assert_eq!(face.metrics.in_flight.get(), 0);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_refused() {
    let broken = futures_util::stream::iter([Ok(&b"{\"mod"[..]), Err(std::io::Error::other("gone"))]);
    let reply = post(&face_saying("x"), "/v1/chat/completions", Body::from_stream(broken)).await;
    assert_eq!(reply.error().0, 400);
}

#[tokio::test]
async fn a_full_engine_says_when_to_retry() {
    let (face, inbox) = stage();
    let held: Vec<_> = (0..limits().requests_max)
        .map(|_| {
            let face = Arc::clone(&face);
            tokio::spawn(async move { chat(&face, json!({})).await })
        })
        .collect();
    let (first, inbox) = submission(inbox).await;
    let (second, inbox) = submission(inbox).await;
    let reply = chat(&face, json!({})).await;
    assert_eq!(reply.error(), (429, "rate_limit_error".into(), Value::Null, json!("queue_full")));
    assert_eq!(reply.headers["retry-after"], "1");
    drop((first, second, inbox));
    for request in held {
        assert_eq!(request.await.expect("a reply").error().0, 503, "the engine went away");
    }
}

#[tokio::test]
async fn an_engine_that_fails_is_said() {
    let (face, inbox) = stage();
    play(inbox, |submission| {
        send(&submission, GenEvent::Prompt { usage: usage(&submission) });
        send(&submission, GenEvent::Failed(EngineError::ShuttingDown));
    });
    let reply = chat(&face, json!({})).await;
    assert_eq!(reply.error(), (503, "server_error".into(), Value::Null, json!("engine_unavailable")));
    assert!(reply.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_dead_engine_shows_in_health() {
    let (face, inbox) = stage();
    assert_eq!(get(&face, "/health").await.json(), json!({"status": "ok"}));
    drop(inbox);
    let reply = chat(&face, json!({})).await;
    assert_eq!(reply.error(), (503, "server_error".into(), Value::Null, json!("engine_unavailable")));
    let health = get(&face, "/health").await;
    assert_eq!((health.status, health.json()), (503, json!({"status": "failed"})));
    assert_eq!(chat(&face, json!({})).await.error().0, 503);
}

#[tokio::test]
async fn a_draining_engine_takes_nothing_new() {
    let face = face_saying("x");
    face.set_health(Health::Draining);
    assert_eq!(get(&face, "/health").await.json(), json!({"status": "draining"}));
    assert_eq!(chat(&face, json!({})).await.error().0, 503);
    assert_eq!(get(&face, "/health").await.json(), json!({"status": "draining"}), "not failed");
}

#[tokio::test]
async fn a_model_without_template_has_no_chat() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::copy(model_dir().join("tokenizer.json"), dir.path().join("tokenizer.json")).expect("copied");
    let (face, inbox) = stage_for(dir.path());
    let prompt = Arc::clone(&face.prompt);
    play(inbox, move |submission| say(&prompt, &submission, "the", FinishReason::Stop));
    let reply = chat(&face, json!({})).await;
    assert_eq!(reply.error(), (400, INVALID.into(), json!("messages"), json!("no_chat_template")));
    assert_eq!(complete(&face, json!({})).await.status, 200);
}
