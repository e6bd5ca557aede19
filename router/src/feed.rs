//! Follows the store's event feed and keeps the index by it.
//!
//! One task: connect, prove the tenant's secret, apply message after message. Whatever goes wrong, it drops the copy
//! and joins again, more slowly each time; meanwhile requests are routed by load. It never gives up.

use std::fmt;
use std::str::FromStr;
use std::sync::PoisonError;
use std::time::Duration;

use hearth_proto::auth::{Proof, Purpose};
use hearth_proto::limit::FRAME_BYTES_MAX;
use hearth_proto::tenant::{TenantName, TenantSecret};
use hearth_proto::v1::{ChallengeRequest, FeedMessage, WatchRequest};
use thiserror::Error;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::index::{Index, Rejoin, SharedIndex};
use crate::metrics::FeedMetrics;
use crate::rpc::store_client::StoreClient;

/// Longest wait for a connection and for each of the first two answers.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);
/// A connection without a sign of life for this long, and then as long again, is dead.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// First and longest pause before joining again.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Where the store's feed is, and for whom.
#[derive(Clone, Debug)]
pub struct FeedSettings {
    /// The store's control plane.
    pub store: StoreAddress,
    /// Whose blocks.
    pub tenant: TenantName,
    /// The tenant's secret.
    pub secret: TenantSecret,
}

/// Address of a store's control plane.
#[derive(Clone, Debug)]
pub struct StoreAddress {
    text: String,
    endpoint: Endpoint,
}

/// The text is no address of a control plane.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no address of a store: write HOST:PORT or unix:/PATH")]
pub struct StoreAddressError(String);

impl FromStr for StoreAddress {
    type Err = StoreAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || StoreAddressError(text.chars().take(200).collect());
        let uri = match text.strip_prefix("http://") {
            Some(_) => text.to_owned(),
            None if text.starts_with("unix:/") => text.to_owned(),
            None if text.contains("://") || text.is_empty() => return Err(malformed()),
            None => format!("http://{text}"),
        };
        let endpoint = Endpoint::from_shared(uri).map_err(|_| malformed())?;
        let endpoint = endpoint
            .connect_timeout(JOIN_PATIENCE)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        Ok(Self { text: text.to_owned(), endpoint })
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why the feed ended.
#[derive(Debug, Error)]
enum Ended {
    #[error("cannot reach the store: {0}; is `hearth cachesvc` running there?")]
    Unreachable(#[source] tonic::transport::Error),
    #[error("the store did not answer within {JOIN_PATIENCE:?}")]
    Silent,
    #[error("the store refuses this router: {}; check --tenant and --tenant-secret", .0.message())]
    Refused(Status),
    #[error("the feed broke: {}", .0.message())]
    Broken(Status),
    #[error("the store ended the feed")]
    Closed,
    #[error(transparent)]
    Rejoin(#[from] Rejoin),
}

/// Follows the feed for ever. Ends only by being dropped. `following` is true while the index is whole.
pub async fn follow(
    settings: FeedSettings,
    index: SharedIndex,
    metrics: FeedMetrics,
    following: watch::Sender<bool>,
) {
    let mut pause = Pause::default();
    let mut said = String::new();
    loop {
        let mut session =
            Session { index: &index, metrics: &metrics, following: &following, complete: false };
        let ended = session.run(&settings).await;
        if session.complete {
            pause = Pause::default();
            said.clear();
        }
        metrics.left(ended.label());
        following.send_replace(false);
        with(&index, Index::clear);
        // Said once until it changes: a store may be away for long.
        let reason = ended.to_string();
        if reason != said {
            tracing::warn!(store = %settings.store, %reason, "not following the store; routing by load");
            said = reason;
        }
        tokio::time::sleep(pause.next(&ended)).await;
    }
}

/// Follows from one joining to its end.
struct Session<'a> {
    index: &'a SharedIndex,
    metrics: &'a FeedMetrics,
    following: &'a watch::Sender<bool>,
    /// Whether the whole snapshot has come.
    complete: bool,
}

impl Session<'_> {
    async fn run(&mut self, settings: &FeedSettings) -> Ended {
        let mut messages = match join(settings).await {
            Ok(messages) => messages,
            Err(ended) => return ended,
        };
        loop {
            match messages.message().await {
                Ok(Some(message)) => {
                    if let Err(rejoin) = self.apply(message, settings) {
                        return rejoin.into();
                    }
                }
                Ok(None) => return Ended::Closed,
                Err(status) if status.code() == Code::Unauthenticated => return Ended::Refused(status),
                Err(status) => return Ended::Broken(status),
            }
        }
    }

    fn apply(&mut self, message: FeedMessage, settings: &FeedSettings) -> Result<(), Rejoin> {
        let complete = with(self.index, |index| index.apply(message).map(|()| index.complete()))?;
        self.metrics.messages.inc();
        if complete && !self.complete {
            self.complete = true;
            self.metrics.joined();
            self.following.send_replace(true);
            let blocks = with(self.index, |index| index.blocks());
            tracing::info!(store = %settings.store, tenant = %settings.tenant, blocks, "following the store");
        }
        Ok(())
    }
}

async fn join(settings: &FeedSettings) -> Result<Streaming<FeedMessage>, Ended> {
    let channel: Channel = settings.store.endpoint.connect().await.map_err(Ended::Unreachable)?;
    let mut client = StoreClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX);
    let challenge = answer(client.challenge(ChallengeRequest {})).await?.challenge;
    let proof = Proof::new(&settings.secret, Purpose::Watch, &challenge).to_bytes();
    answer(client.watch(WatchRequest { tenant: settings.tenant.to_string(), challenge, proof })).await
}

async fn answer<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Ended> {
    match tokio::time::timeout(JOIN_PATIENCE, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) if status.code() == Code::Unauthenticated => Err(Ended::Refused(status)),
        Ok(Err(status)) => Err(Ended::Broken(status)),
        Err(_) => Err(Ended::Silent),
    }
}

fn with<T>(index: &SharedIndex, act: impl FnOnce(&mut Index) -> T) -> T {
    // A copy that a panic left half-changed fails its next digest and is dropped.
    act(&mut index.write().unwrap_or_else(PoisonError::into_inner))
}

impl Ended {
    /// A word for the metrics.
    fn label(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Silent => "silent",
            Self::Refused(_) => "refused",
            Self::Broken(_) | Self::Closed => "disconnected",
            Self::Rejoin(rejoin) => rejoin.label(),
        }
    }
}

/// How long to wait before joining again: twice as long each time.
#[derive(Debug)]
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(PAUSE_MIN)
    }
}

impl Pause {
    fn next(&mut self, ended: &Ended) -> Duration {
        let lasting =
            matches!(ended, Ended::Refused(_) | Ended::Rejoin(Rejoin::Protocol(_) | Rejoin::Full { .. }));
        let now = if lasting { PAUSE_MAX } else { self.0 };
        self.0 = (self.0 * 2).min(PAUSE_MAX);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_tcp_or_unix() {
        for good in ["127.0.0.1:7700", "node-1:7700", "http://[::1]:7700", "unix:/run/hearth/grpc.sock"] {
            assert_eq!(good.parse::<StoreAddress>().expect(good).to_string(), good);
        }
        for bad in ["", "https://node:1", "ftp://x", "a b"] {
            assert!(bad.parse::<StoreAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_are_long_where_nothing_will_change() {
        let mut pause = Pause::default();
        assert_eq!(pause.next(&Ended::Closed), PAUSE_MIN);
        assert_eq!(pause.next(&Ended::Silent), PAUSE_MIN * 2);
        for _ in 0..10 {
            pause.next(&Ended::Closed);
        }
        assert_eq!(pause.next(&Ended::Closed), PAUSE_MAX);
        assert_eq!(Pause::default().next(&Ended::Refused(Status::unauthenticated("no"))), PAUSE_MAX);
    }
}
