//! The whole router over real sockets: engines and the store are played by servers in the test.
//!
//! Nothing here measures time. Engines send a piece when the test says so, and whatever a test waits for is bounded only
//! so that a broken router fails the test instead of hanging it.

mod client;
mod engine;
mod matching;
mod proxy;
mod router;
mod store;

use std::time::Duration;

/// Waits for something that is sure to come.
async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(20), event).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen"),
    }
}

/// Asks again and again until something holds.
async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    soon(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
