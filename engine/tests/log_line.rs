//! A request is one line of the log, with what it took. Alone in its process: what is logged depends on
//! who listens in the whole process.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::Request;
use hearth_engine::http::{Face, FaceConfig, router};
use hearth_engine::request::{
    EngineHandle, EngineLimits, FinishReason, GenEvent, GenUsage, LoadedTokens, Submission,
};
use hearth_prompt::Prompt;
use prometheus_client::registry::Registry;
use tower::ServiceExt as _;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn answer(submission: &Submission) {
    let loaded = LoadedTokens { engine: 2, pinned: 3, nvme: 1 };
    let usage = GenUsage { prompt_tokens: 9, completion_tokens: 0, computed_tokens: 3, loaded };
    let last = GenUsage { completion_tokens: 2, ..usage };
    for event in [
        GenEvent::Prompt { usage },
        GenEvent::Token { id: 70 },
        GenEvent::Finished { reason: FinishReason::Stop, usage: last },
    ] {
        submission.events.try_send(event).expect("a stream holds all its events");
    }
}

#[tokio::test]
async fn a_request_is_one_line_of_the_log() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _logging = tracing::subscriber::set_default(subscriber);

    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cachesvc/prompt/tests/model");
    let limits =
        EngineLimits { context_tokens_max: 128, requests_max: 2, pages_max: 64, page_tokens: 16, vocab: 330 };
    let (engine, inbox) = EngineHandle::detached(limits);
    let engine_loop = move || inbox.iter().for_each(|submission| answer(&submission));
    std::thread::Builder::new().name("scripted engine".to_owned()).spawn(engine_loop).expect("a thread");
    let config = FaceConfig {
        model_names: vec!["tiny".to_owned()],
        stop_tokens: vec![1],
        system_fingerprint: "fp_test".to_owned(),
        started_unix_seconds: 0,
        instance: 1,
        tokenize_threads: 1,
    };
    let prompt = Arc::new(Prompt::load(&model).expect("the test model"));
    let app = router(Face::new(config, engine, prompt, Registry::default()));

    let body = r#"{"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}"#;
    let request =
        Request::post("/v1/chat/completions").header("x-request-id", "mine-7").body(Body::from(body));
    let response = app.oneshot(request.expect("a request")).await.expect("infallible");
    assert_eq!(response.status(), 200);

    let lines = String::from_utf8(log.0.lock().expect("not poisoned").clone()).expect("UTF-8");
    assert_eq!(lines.lines().count(), 1, "{lines}");
    for part in [
        "INFO",
        "id=1",
        "client_id=\"mine-7\"",
        "model=\"tiny\"",
        "status=200",
        "outcome=\"stop\"",
        "prompt_tokens=9",
        "computed_tokens=3",
        "loaded_engine=2",
        "loaded_pinned=3",
        "loaded_nvme=1",
        "completion_tokens=2",
        "ttft_ms=",
        "total_ms=",
    ] {
        assert!(lines.contains(part), "{part} is not in {lines}");
    }
}
