//! Streamed replies, in the order and shape that OpenAI's clients expect.

use super::*;

/// The text of all chunks of a chat.
fn text(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn a_chat_streams_role_then_text_then_reason() {
    let reply = chat(&face_saying("the cat — 😀 sat"), json!({"stream": true})).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    assert_eq!(reply.headers["cache-control"], "no-cache");
    let chunks = reply.chunks();
    let (first, last) = (&chunks[0], &chunks[chunks.len() - 1]);
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(text(&chunks), "the cat — 😀 sat");
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!((&chunk["id"], &chunk["system_fingerprint"]), (&first["id"], &json!("fp_test")));
        assert!(chunk.get("usage").is_none(), "no usage unless asked: {chunk}");
        assert!(!chunk.to_string().contains('\u{FFFD}'), "whole characters only: {chunk}");
    }
    let open = &chunks[..chunks.len() - 1];
    assert!(open.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
}

#[tokio::test]
async fn usage_comes_last_when_asked() {
    let extra = json!({"stream": true, "stream_options": {"include_usage": true}});
    let chunks = chat(&face_saying("the cat"), extra).await.chunks();
    let (last, before) = chunks.split_last().expect("chunks");
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["hearth"]["loaded_tokens"], json!({"engine": 2, "pinned": 3, "nvme": 1}));
    assert_eq!(last["usage"]["prompt_tokens_details"]["cached_tokens"], 6);
    assert!(before.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
}

#[tokio::test]
async fn a_completion_streams_text() {
    let chunks = complete(&face_saying("and again"), json!({"stream": true})).await.chunks();
    let said: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(said, "and again");
    assert!(chunks.iter().all(|chunk| chunk["object"] == "text_completion"));
    assert_eq!(chunks.last().expect("chunks")["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_stop_string_is_never_sent_and_ends_the_request_at_once() {
    let (face, inbox) = stage();
    let extra = json!({"stream": true, "stop": "cat s", "stream_options": {"include_usage": true}});
    let asked = tokio::spawn(async move { chat(&face, extra).await });
    let (submission, _inbox) = submission(inbox).await;
    let prompt = Prompt::load(&model_dir()).expect("the test model");
    send(&submission, GenEvent::Prompt { usage: usage(&submission) });
    let tokens = prompt.tokenizer().encode("the cat sat", hearth_prompt::Specials::InText).expect("tokens");
    for &id in &tokens {
        send(&submission, GenEvent::Token { id });
    }
    submission.events.closed().await;
    let chunks = asked.await.expect("a reply").chunks();
    assert_eq!(text(&chunks), "the ");
    let usage = &chunks.last().expect("chunks")["usage"];
    assert!(
        usage["completion_tokens"].as_u64().is_some_and(|n| 0 < n && n <= tokens.len() as u64),
        "{usage}"
    );
}

#[tokio::test]
async fn a_failure_before_the_first_token_has_its_status() {
    let (face, inbox) = stage();
    play(inbox, |submission| send(&submission, GenEvent::Failed(EngineError::ShuttingDown)));
    let reply = chat(&face, json!({"stream": true})).await;
    assert_eq!(reply.error().0, 503);
}

#[tokio::test]
async fn a_failure_in_the_middle_is_said_in_the_stream() {
    let (face, inbox) = stage();
    play(inbox, |submission| {
        send(&submission, GenEvent::Prompt { usage: usage(&submission) });
        send(&submission, GenEvent::Token { id: 70 });
        send(&submission, GenEvent::Finished { reason: FinishReason::Cancelled, usage: usage(&submission) });
    });
    let reply = chat(&face, json!({"stream": true})).await;
    let last: Value = serde_json::from_str(reply.events().last().expect("events")).expect("JSON");
    assert_eq!(last["error"]["type"], "server_error");
    assert!(!reply.text.contains("[DONE]"), "an unfinished stream must not look finished");
}
