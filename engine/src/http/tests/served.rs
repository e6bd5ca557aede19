//! Replies that are not streamed, and what reaches the engine.

use super::*;

#[tokio::test]
async fn a_chat_is_answered() {
    let reply = chat(&face_saying("the cat — 😀 sat"), json!({"temperature": 0})).await;
    assert_eq!(reply.status, 200);
    let body = reply.json();
    assert_eq!(body["object"], "chat.completion");
    assert!(body["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")));
    assert_eq!((&body["model"], &body["system_fingerprint"]), (&json!("tiny"), &json!("fp_test")));
    assert!(body["created"].as_u64().is_some_and(|created| created > 1_700_000_000));
    assert_eq!(
        body["choices"],
        json!([{
            "index": 0,
            "message": {"role": "assistant", "content": "the cat — 😀 sat", "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
        }])
    );
}

#[tokio::test]
async fn usage_says_where_the_prompt_came_from() {
    let body = chat(&face_saying("the"), json!({})).await.json();
    let prompt = body["usage"]["prompt_tokens"].as_u64().expect("a count");
    assert_eq!(
        body["usage"],
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": 2,
            "total_tokens": prompt + 2,
            "prompt_tokens_details": {"cached_tokens": 6},
            "hearth": {
                "computed_tokens": prompt.saturating_sub(6),
                "loaded_tokens": {"engine": 2, "pinned": 3, "nvme": 1},
            },
        })
    );
}

#[tokio::test]
async fn a_completion_is_answered() {
    let reply = complete(&face_saying("and again"), json!({})).await;
    let body = reply.json();
    assert_eq!((reply.status, &body["object"]), (200, &json!("text_completion")));
    assert!(body["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
    let choice = json!({"index": 0, "text": "and again", "logprobs": null, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
}

#[tokio::test]
async fn a_stop_string_over_several_tokens_ends_the_text_and_the_request() {
    let (face, inbox) = stage();
    let asked = tokio::spawn(async move { chat(&face, json!({"stop": ["cat s", "zzz"]})).await });
    let (submission, _inbox) = submission(inbox).await;
    let prompt = Prompt::load(&model_dir()).expect("the test model");
    send(&submission, GenEvent::Prompt { usage: usage(&submission) });
    for id in prompt.tokenizer().encode("the cat sat", hearth_prompt::Specials::InText).expect("tokens") {
        send(&submission, GenEvent::Token { id });
    }
    // No end comes from the engine: the face has to see it, and to cancel what runs on.
    let body = asked.await.expect("a reply").json();
    assert_eq!(body["choices"][0]["message"]["content"], "the ");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    submission.events.closed().await;
}

#[tokio::test]
async fn length_is_told_from_stop() {
    let (face, inbox) = stage();
    let prompt = Arc::clone(&face.prompt);
    play(inbox, move |submission| say(&prompt, &submission, "the cat sat", FinishReason::Length));
    let body = complete(&face, json!({"max_tokens": 1})).await.json();
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["choices"][0]["text"], "the");
}

#[tokio::test]
async fn the_request_reaches_the_engine_as_asked() {
    let (face, inbox) = stage();
    let extra = json!({
        "max_completion_tokens": 7, "temperature": 0.25, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 42,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "cache_salt": "s",
    });
    let asked = tokio::spawn(async move { chat(&face, extra).await });
    let (submission, _inbox) = submission(inbox).await;
    let request = &submission.request;
    assert_eq!(request.tokens.first(), Some(&0), "the template begins the text");
    assert_eq!(request.tokens.last(), Some(&3), "and asks the assistant to go on");
    assert_eq!((request.new_tokens_max, request.stop_tokens.as_slice()), (7, [1].as_slice()));
    assert_eq!(request.salt.as_deref(), Some("s"));
    let expected = crate::request::Sampling {
        temperature: 0.25,
        top_p: 0.5,
        top_k: Some(3),
        min_p: 0.1,
        seed: Some(42),
        presence_penalty: 0.5,
        frequency_penalty: -0.5,
    };
    assert_eq!(request.sampling, expected);
    drop(submission);
    asked.await.expect("a reply");
}

#[tokio::test]
async fn what_is_left_open_comes_from_the_model_and_the_context() {
    let (face, inbox) = stage();
    let asked = tokio::spawn({
        let face = Arc::clone(&face);
        async move { chat(&face, json!({"ignore_eos": true})).await }
    });
    let (first, inbox) = submission(inbox).await;
    assert_eq!((first.request.sampling.temperature, first.request.sampling.top_p), (0.6, 0.9));
    assert_eq!(first.request.tokens.len() + first.request.new_tokens_max, limits().context_tokens_max);
    assert!(first.request.stop_tokens.is_empty(), "the end is ignored as asked");
    let seed = first.request.sampling.seed;
    assert!(seed.is_some(), "requests without a seed draw differently in each process");
    say(&face.prompt, &first, "the", FinishReason::Stop);
    drop(first);
    asked.await.expect("a reply");

    // Without a seed each request gets another.
    let asked = tokio::spawn(async move { complete(&face, json!({})).await });
    let (second, _inbox) = submission(inbox).await;
    assert_ne!(second.request.sampling.seed, seed);
    assert_eq!(second.request.new_tokens_max, hearth_prompt::COMPLETION_TOKENS_DEFAULT);
    drop(second);
    asked.await.expect("a reply");
}

#[tokio::test]
async fn models_are_listed() {
    let face = face_saying("x");
    let list = get(&face, "/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let model = json!({"id": "tiny", "object": "model", "created": 1_700_000_000, "owned_by": "hearth", "max_model_len": 128});
    assert_eq!(list["data"][0], model);
    assert_eq!(get(&face, "/v1/models/tiny").await.json(), model);
    assert_eq!(get(&face, "/v1/models/org/tiny").await.json()["id"], "org/tiny");
    let unknown = get(&face, "/v1/models/other").await;
    assert_eq!(
        unknown.error(),
        (404, "invalid_request_error".into(), json!("model"), json!("model_not_found"))
    );
}
