//! Engines that fail in the ways that only a socket can.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::record::Record;
use super::relay::{Broken, Relay};
use super::upstream::{Begun, Outgoing, TryError, Upstream};
use crate::fleet::EndpointId;
use crate::load::{Claim, Loads};
use crate::metrics::GatewayMetrics;

/// Sends `said` to whoever asks, and keeps the connection open until it is told to hang up.
async fn engine(said: &'static str) -> (String, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let (hang_up, told) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut request = [0; 1024];
        let _bytes = stream.read(&mut request).await.expect("reads");
        stream.write_all(said.as_bytes()).await.expect("writes");
        let _: Result<(), _> = told.await;
    });
    (address, hang_up)
}

fn outgoing() -> Outgoing {
    Outgoing { path: "/v1/completions", headers: HeaderMap::new(), body: Bytes::from_static(b"{}") }
}

async fn begin(address: &str, silence_max: Duration) -> Result<Begun, TryError> {
    Upstream::new(silence_max).begin(address, &outgoing()).await
}

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn failures_before_the_first_byte_are_told_apart() {
    let (silent, _open) = engine("").await;
    let error = begin(&silent, SHORT).await.expect_err("says nothing");
    assert_eq!((error.label(), error.is_dead()), ("silent", false));
    for partial in ["", "HTTP/1.1 200 OK\r\nconte", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"] {
        let (dying, hang_up) = engine(partial).await;
        drop(hang_up);
        let error = begin(&dying, LONG).await.expect_err("hangs up");
        assert_eq!((error.label(), error.is_dead()), ("died", true), "{partial:?}");
    }
    let error = begin("127.0.0.1:1", LONG).await.expect_err("nobody listens");
    assert_eq!((error.label(), error.is_dead()), ("refused", true));
}

#[tokio::test]
async fn a_silence_within_an_answer_ends_it_and_gives_the_load_back() {
    let (address, _open) = engine("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n").await;
    let Begun { first, rest, .. } = begin(&address, LONG).await.expect("begins");
    let loads = Arc::new(Loads::new(1));
    let claim = Claim { endpoint: EndpointId::new(0), tokens: 9 };
    let (reservation, ()) = loads.reserve(|_| Ok::<_, ()>((claim, ()))).expect("decided");
    let record = Record::new("r".into(), GatewayMetrics::register(&mut Registry::default()), None);
    let mut relay = Relay::new(first, rest, SHORT, (record, reservation));
    let frame = relay.frame().await.expect("a piece").expect("whole");
    assert_eq!(frame.into_data().expect("data"), "hi");
    assert!(matches!(relay.frame().await, Some(Err(Broken::Silent))));
    assert_eq!(loads.snapshot()[0].requests, 1);
    drop(relay);
    assert_eq!(loads.snapshot()[0].requests, 0);
}
