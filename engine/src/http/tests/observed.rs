//! The metrics of requests.

use super::*;

#[tokio::test]
async fn requests_and_tokens_are_counted() {
    let face = face_saying("the cat");
    chat(&face, json!({})).await;
    complete(&face, json!({"stream": true})).await;
    chat(&face, json!({"temperature": 9})).await;
    let reply = get(&face, "/metrics").await;
    assert!(
        reply.headers["content-type"].to_str().expect("text").starts_with("application/openmetrics-text")
    );
    for line in [
        "hearth_engine_http_requests_total{endpoint=\"chat\",status=\"200\"} 1",
        "hearth_engine_http_requests_total{endpoint=\"chat\",status=\"400\"} 1",
        "hearth_engine_http_requests_total{endpoint=\"completions\",status=\"200\"} 1",
        "hearth_engine_http_requests_in_flight 0",
        "hearth_engine_http_time_to_first_token_seconds_count 2",
        "hearth_engine_http_request_duration_seconds_count 3",
    ] {
        assert!(reply.text.contains(line), "{line} is not in\n{}", reply.text);
    }
}
