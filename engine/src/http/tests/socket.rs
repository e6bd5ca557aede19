//! Over real sockets: clients that leave, bodies too large to hold, and the bound on connections.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

async fn serve(face: &Arc<Face>, connections_max: usize) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let app = router(Arc::clone(face));
    tokio::spawn(async move { axum::serve(Limited::new(listener, connections_max), app).await });
    address
}

async fn read_until(stream: &mut TcpStream, what: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(what) {
        let n = stream.read(&mut buffer).await.expect("readable");
        assert_ne!(n, 0, "closed before {what:?}: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    text
}

#[tokio::test]
async fn a_client_that_leaves_mid_stream_cancels_its_request() {
    let (face, inbox) = stage();
    let address = serve(&face, CONNECTIONS_MAX).await;
    let mut client = TcpStream::connect(address).await.expect("connected");
    client.write_all(over_http(&chat_body(json!({"stream": true}))).as_bytes()).await.expect("written");
    let (submission, _inbox) = submission(inbox).await;
    send(&submission, GenEvent::Prompt { usage: usage(&submission) });
    let head = read_until(&mut client, "assistant").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    drop(client);
    submission.events.closed().await;
    left(&face).await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_cancels_its_request() {
    for stream in [false, true] {
        let (face, inbox) = stage();
        let address = serve(&face, CONNECTIONS_MAX).await;
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_all(over_http(&chat_body(json!({"stream": stream}))).as_bytes()).await.expect("written");
        let (submission, _inbox) = submission(inbox).await;
        drop(client);
        submission.events.closed().await;
        left(&face).await;
    }
}

/// Waits until the request's record is closed, as one of a client that left.
async fn left(face: &Arc<Face>) {
    while face.metrics.in_flight.get() > 0 {
        tokio::task::yield_now().await;
    }
    let metrics = get(face, "/metrics").await.text;
    assert!(metrics.contains("status=\"499\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_huge_body_is_answered_and_not_kept() {
    let face = face_saying("x");
    let address = serve(&face, CONNECTIONS_MAX).await;
    const MEBIBYTES: usize = 100;
    let mut client = TcpStream::connect(address).await.expect("connected");
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        MEBIBYTES << 20
    );
    client.write_all(head.as_bytes()).await.expect("written");
    let block = vec![b' '; 1 << 20];
    for _ in 0..MEBIBYTES {
        client.write_all(&block).await.expect("the sender is heard out");
    }
    let reply = read_until(&mut client, "body_too_large").await;
    assert!(reply.starts_with("HTTP/1.1 413"), "{reply}");
    assert_eq!(chat(&face, json!({})).await.status, 200, "others are served");
}

#[tokio::test]
async fn a_huge_body_that_waits_for_a_word_is_never_sent() {
    let address = serve(&face_saying("x"), CONNECTIONS_MAX).await;
    let mut client = TcpStream::connect(address).await.expect("connected");
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 100000000\r\n\r\n";
    client.write_all(head.as_bytes()).await.expect("written");
    let reply = read_until(&mut client, "body_too_large").await;
    assert!(reply.starts_with("HTTP/1.1 413"), "{reply}");
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_for_a_place() {
    let address = serve(&face_saying("x"), 1).await;
    let ask = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut first = TcpStream::connect(address).await.expect("connected");
    first.write_all(ask.as_bytes()).await.expect("written");
    read_until(&mut first, "ok").await;
    // Connected by the system, not yet accepted by the server.
    let mut second = TcpStream::connect(address).await.expect("connected");
    second.write_all(ask.as_bytes()).await.expect("written");
    drop(first);
    read_until(&mut second, "ok").await;
}
