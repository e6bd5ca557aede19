//! What a reverse proxy owes to both sides, and what happens when either of them goes away.

use std::sync::atomic::Ordering;

use http::StatusCode;
use http_body_util::BodyExt;

use crate::client::{ask, chat, get, header, post, post_json, send};
use crate::engine::{Broken, Engine, Script, hanging_up, piece};
use crate::router::{Router, parse, parse_error};
use crate::{soon, until};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn an_answer_comes_through_with_the_routers_headers() {
    let engine = Engine::start("demo", Script::Whole).await;
    let router = Router::before(&[&engine.address]).await;
    let mut request = post_json(&router.address, CHAT, &chat("demo"));
    request.headers_mut().insert("x-request-id", "mine".parse().expect("text"));
    request.headers_mut().insert("authorization", "Bearer k".parse().expect("text"));
    let answer = ask(request).await;
    assert_eq!((answer.status, &answer.json()["engine"]), (StatusCode::OK, &"demo".into()));
    assert_eq!(answer.header("x-hearth-endpoint"), engine.address);
    assert_eq!(answer.header("x-hearth-tries"), "1");
    assert_eq!(answer.header("x-request-id"), "mine");
    assert_eq!(
        answer.header("x-hearth-decision"),
        "match=unknown(no-tokenizer) load=0 requests=0 candidates=1"
    );
    let seen = engine.last_headers();
    assert_eq!(header(&seen, "x-request-id"), "mine");
    assert_eq!(header(&seen, "authorization"), "Bearer k");
    assert_eq!(header(&seen, "host"), engine.address);

    let answer = ask(post_json(&router.address, CHAT, &chat("demo"))).await;
    assert!(answer.header("x-request-id").starts_with("req-"));
    assert_eq!(header(&engine.last_headers(), "x-request-id"), answer.header("x-request-id"));
    router.stop().await.expect("ends well");
}

#[tokio::test]
async fn pieces_come_through_as_they_are_sent() {
    let (engine, pieces) = Engine::streaming().await;
    let router = Router::before(&[&engine.address]).await;
    pieces.send(piece("data: 1\n\n")).await.expect("sent");
    let answer = send(post_json(&router.address, CHAT, &chat("demo"))).await;
    assert_eq!(header(answer.headers(), "content-type"), "text/event-stream");
    let mut body = answer.into_body();
    // Each piece is sent only after the one before has arrived, so nothing can have been held back.
    for (sent, next) in [("data: 1\n\n", "data: 2\n\n"), ("data: 2\n\n", "data: 3\n\n")] {
        let frame = soon("a piece", body.frame()).await.expect("not at its end").expect("whole");
        assert_eq!(frame.into_data().expect("data"), sent);
        pieces.send(piece(next)).await.expect("sent");
    }
    drop(pieces);
    assert_eq!(soon("the rest", body.collect()).await.expect("whole").to_bytes(), "data: 3\n\n");
    let metrics = get(&router.address, "/metrics").await;
    let metrics = String::from_utf8(metrics.body.to_vec()).expect("text");
    assert!(
        metrics.contains(&format!("hearth_router_inflight_requests{{endpoint=\"{}\"}} 0", engine.address))
    );
    assert!(metrics.contains("hearth_router_requests_total{code=\"200\""), "{metrics}");
}

#[tokio::test]
async fn engines_errors_are_passed_on_untouched() {
    let engine = Engine::start("demo", Script::Error).await;
    let router = Router::before(&[&engine.address]).await;
    let answer = ask(post_json(&router.address, CHAT, &chat("demo"))).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.error(), "too long");
    assert_eq!((answer.header("x-engine"), answer.header("keep-alive")), ("1", ""));
}

#[tokio::test]
async fn an_engine_that_hangs_up_before_the_first_byte_is_replaced() {
    let (dead, hung_up) = hanging_up().await;
    let engine = Engine::start("demo", Script::Whole).await;
    let router = Router::before(&[&dead, &engine.address]).await;
    let answer = ask(post_json(&router.address, CHAT, &chat("demo"))).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("x-hearth-endpoint"), engine.address);
    assert_eq!(answer.header("x-hearth-tries"), "2");
    assert_eq!(hung_up.load(Ordering::SeqCst), 1);
    let metrics = get(&router.address, "/metrics").await;
    assert!(
        String::from_utf8_lossy(&metrics.body).contains("hearth_router_retries_total{reason=\"died\"} 1")
    );
}

#[tokio::test]
async fn headers_without_a_byte_of_the_answer_can_still_be_replaced() {
    let (dead, pieces) = Engine::streaming().await;
    let engine = Engine::start("demo", Script::Whole).await;
    let router = Router::before(&[&dead.address, &engine.address]).await;
    pieces.send(Err(Broken)).await.expect("sent");
    let answer = ask(post_json(&router.address, CHAT, &chat("demo"))).await;
    assert_eq!((answer.status, answer.header("x-hearth-tries")), (StatusCode::OK, "2"));
    assert_eq!(dead.requests(), 1);
}

#[tokio::test]
async fn an_engine_that_is_gone_is_ejected_and_comes_back() {
    let one = Engine::start("demo", Script::Whole).await;
    let two = Engine::start("demo", Script::Whole).await;
    let router = Router::before(&[&one.address, &two.address]).await;
    drop(one);
    for _ in 0..4 {
        let answer = ask(post_json(&router.address, CHAT, &chat("demo"))).await;
        assert_eq!(
            (answer.status, answer.header("x-hearth-endpoint")),
            (StatusCode::OK, two.address.as_str())
        );
    }
    let health = || async { get(&router.address, "/health").await.json() };
    until("the ejection", || async { health().await["engines_up"] == 1 }).await;
    let address = two.address.clone();
    drop(two);
    until("the last one's ejection", || async { health().await["engines_up"] == 0 }).await;
    let answer = ask(post_json(&router.address, CHAT, &chat("demo"))).await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "1"));
    assert!(answer.error().contains("2 down"), "{}", answer.error());
    assert_eq!(get(&router.address, "/v1/models").await.status, StatusCode::SERVICE_UNAVAILABLE);

    let listener = tokio::net::TcpListener::bind(&address).await.expect("free again");
    let routes = axum::Router::new().fallback(|| async { "{}" });
    let back = tokio::spawn(async move { axum::serve(listener, routes).await });
    until("its return", || async { health().await["engines_up"] == 1 }).await;
    back.abort();
}

#[tokio::test]
async fn an_engine_that_dies_within_its_answer_is_seen_and_not_replaced() {
    let (dying, pieces) = Engine::streaming().await;
    let other = Engine::start("demo", Script::Whole).await;
    let router = Router::before(&[&dying.address, &other.address]).await;
    pieces.send(piece("data: 1\n\n")).await.expect("sent");
    let mut answer = send(post_json(&router.address, CHAT, &chat("demo"))).await;
    let first = soon("a piece", answer.body_mut().frame()).await.expect("a piece").expect("whole");
    assert_eq!(first.into_data().expect("data"), "data: 1\n\n");
    pieces.send(Err(Broken)).await.expect("sent");
    soon("the break", answer.into_body().collect())
        .await
        .expect_err("the client sees that its answer is not whole");
    assert_eq!(other.requests(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_at_the_engine() {
    let (engine, pieces) = Engine::streaming().await;
    let router = Router::before(&[&engine.address]).await;
    pieces.send(piece("data: 1\n\n")).await.expect("sent");
    let mut answer = send(post_json(&router.address, CHAT, &chat("demo"))).await;
    soon("a piece", answer.body_mut().frame()).await.expect("a piece").expect("whole");
    drop(answer);
    soon("the end at the engine", engine.abandoned()).await;
    let counted = || async {
        let metrics = get(&router.address, "/metrics").await;
        String::from_utf8_lossy(&metrics.body)
            .contains(&format!("hearth_router_inflight_requests{{endpoint=\"{}\"}} 0", engine.address))
    };
    until("the load given back", counted).await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_ends_its_request_too() {
    let engine = Engine::start("demo", Script::Nothing).await;
    let router = Router::before(&[&engine.address]).await;
    let request = tokio::spawn(send(post_json(&router.address, CHAT, &chat("demo"))));
    until("the request", || async { engine.requests() == 1 }).await;
    request.abort();
    soon("the end at the engine", engine.abandoned()).await;
    let left = || async {
        let metrics = get(&router.address, "/metrics").await;
        String::from_utf8_lossy(&metrics.body).contains("hearth_router_requests_total{code=\"499\"")
    };
    until("the count", left).await;
}

#[tokio::test]
async fn the_subset_hint_restricts_the_choice() {
    let one = Engine::start("demo", Script::Whole).await;
    let two = Engine::start("demo", Script::Whole).await;
    let router = Router::before(&[&one.address, &two.address]).await;
    let hinted = |hint: &str| {
        let mut request = post_json(&router.address, CHAT, &chat("demo"));
        request.headers_mut().insert("x-gateway-destination-endpoint-subset", hint.parse().expect("text"));
        request
    };
    for _ in 0..3 {
        let answer = ask(hinted(&format!("10.1.1.1:80, {}", two.address))).await;
        assert_eq!(answer.header("x-hearth-endpoint"), two.address);
    }
    assert_eq!(header(&two.last_headers(), "x-gateway-destination-endpoint-subset"), "");
    let answer = ask(hinted("10.1.1.1:80")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.error().contains("2 outside of the subset"), "{}", answer.error());
    assert_eq!(one.requests(), 0);
}

#[tokio::test]
async fn models_are_merged_and_choose_their_engine() {
    let one = Engine::start("demo", Script::Whole).await;
    let two = Engine::start("other/model", Script::Whole).await;
    let router = Router::before(&[&one.address, &two.address]).await;
    let list = get(&router.address, "/v1/models").await.json();
    let ids: Vec<&str> =
        list["data"].as_array().expect("a list").iter().filter_map(|m| m["id"].as_str()).collect();
    assert_eq!(ids, ["demo", "alias", "other/model"]);
    assert_eq!(get(&router.address, "/v1/models/other/model").await.json()["id"], "other/model");
    assert_eq!(get(&router.address, "/v1/models/none").await.status, StatusCode::NOT_FOUND);
    for _ in 0..3 {
        let answer = ask(post_json(&router.address, CHAT, &chat("other/model"))).await;
        assert_eq!(answer.header("x-hearth-endpoint"), two.address);
    }
    let answer = ask(post_json(&router.address, CHAT, &chat("nobody"))).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(answer.json()["error"]["code"], "model_not_found");
    assert!(answer.error().contains("alias, demo, other/model"), "{}", answer.error());
}

#[tokio::test]
async fn bad_requests_are_answered_here() {
    let engine = Engine::start("demo", Script::Whole).await;
    let router = Router::before(&[&engine.address]).await;
    let answer = ask(post(&router.address, CHAT, "{\"model\": ")).await;
    assert_eq!((answer.status, answer.error().contains("JSON")), (StatusCode::BAD_REQUEST, true));
    let answer = ask(post(&router.address, CHAT, "")).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let answer = ask(post(&router.address, CHAT, vec![b' '; 20 << 20])).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer.error().contains("8 MiB"), "{}", answer.error());
    let answer = get(&router.address, CHAT).await;
    assert_eq!((answer.status, answer.error().contains("GET")), (StatusCode::METHOD_NOT_ALLOWED, true));
    let answer = ask(post(&router.address, "/v2/chat", "{}")).await;
    assert_eq!((answer.status, answer.error().contains("/v2/chat")), (StatusCode::NOT_FOUND, true));
    assert_eq!(engine.requests(), 0);
}

#[tokio::test]
async fn what_keeps_the_router_from_starting_is_said() {
    let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let taken = other.local_addr().expect("bound").to_string();
    let start = |args: Vec<String>| async move {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let run = hearth_router::cli::run(parse(&args), std::future::pending());
        soon("the refusal", run).await.expect_err("must not start").to_string()
    };
    let listen = |address: &str, rest: &[&str]| {
        let mut args = vec!["--listen".to_owned(), address.to_owned()];
        args.extend(["--engine", "127.0.0.1:1"].iter().chain(rest).map(|&arg| arg.to_owned()));
        args
    };
    let said = start(listen(&taken, &[])).await;
    assert!(said.contains(&taken) && said.contains("another program"), "{said}");
    let said = start(listen("0.0.0.0:0", &[])).await;
    assert!(said.contains("other hosts"), "{said}");
    let said = start(listen("127.0.0.1:0", &["--engine", "http://127.0.0.1:1"])).await;
    assert!(said.contains("twice"), "{said}");
    let said = start(listen("127.0.0.1:0", &["--model", "/nonexistent"])).await;
    assert!(said.contains("/nonexistent/tokenizer.json"), "{said}");
    let said =
        start(listen("127.0.0.1:0", &["--store-grpc", "a:1", "--tenant-secret", "/nonexistent"])).await;
    assert!(said.contains("/nonexistent"), "{said}");
    assert!(parse_error(&[]).contains("--engine"));
    assert!(parse_error(&["--engine", "https://a:1"]).contains("plain HTTP"));
    assert!(parse_error(&["--engine", "a:1", "--store-grpc", "b:1"]).contains("--tenant-secret"));
}
