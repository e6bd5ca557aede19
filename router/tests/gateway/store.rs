//! A store that sends the feed that the test says.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::{Stream, StreamExt};
use hearth_proto::auth::{Proof, Purpose};
use hearth_proto::event::Digest;
use hearth_proto::identity::{AttentionGroup, CacheIdentity, LAYOUT_CANONICAL};
use hearth_proto::key::{BlockKey, KeyChain, pack};
use hearth_proto::tenant::TenantSecret;
use hearth_proto::v1::feed_message::Body;
use hearth_proto::v1::{
    ChallengeReply, ChallengeRequest, FeedMessage, FlushReply, FlushRequest, Heartbeat, Identity, Registered,
    Removed, SnapshotBegin, SnapshotEnd, StatusReply, StatusRequest, Stored, Tier, WatchRequest,
};
use hearth_proto::version::BLOCK_FORMAT;
use hearth_router::rpc::store_server::{Store, StoreServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tonic::{Request, Response, Status};

const CHALLENGE: &[u8] = b"prove it";

/// The tenant's secret in all tests.
pub(crate) fn secret() -> TenantSecret {
    TenantSecret::from_bytes([7; 32])
}

/// The identity under which all blocks are stored.
pub(crate) fn identity() -> CacheIdentity {
    CacheIdentity {
        model: "demo".into(),
        revision: "r1".into(),
        tokenizer: "t1".into(),
        compute_dtype: "f32".into(),
        kv_dtype: "f32".into(),
        kv_scale: "none".into(),
        groups: vec![AttentionGroup { kind: "full".into(), layers: 1, kv_heads: 1, head_dim: 2 }],
        block_tokens: 16,
        rope: String::new(),
        adapter: String::new(),
        adapter_revision: String::new(),
        layout: LAYOUT_CANONICAL.into(),
        format: BLOCK_FORMAT,
    }
}

/// Keys of a prompt of these tokens.
pub(crate) fn keys(tokens: &[u32]) -> Vec<BlockKey> {
    KeyChain::new(&secret(), &identity()).keys(b"", tokens)
}

/// A store node as far as the router sees it.
#[derive(Clone)]
pub(crate) struct ScriptedStore {
    pub(crate) address: String,
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// What each joining gets, one after the other.
    scripts: Mutex<VecDeque<Vec<FeedMessage>>>,
    readers: Mutex<Vec<mpsc::Sender<FeedMessage>>>,
}

impl ScriptedStore {
    /// Serves one script per joining. When there is none left, joining is refused.
    pub(crate) async fn start(scripts: Vec<Vec<FeedMessage>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let inner = Arc::new(Inner { scripts: Mutex::new(scripts.into()), ..Inner::default() });
        let store = Self { address, inner };
        let server = tonic::transport::Server::builder().add_service(StoreServer::new(store.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        store
    }

    /// The same on a unix socket.
    pub(crate) fn start_unix(path: &std::path::Path, scripts: Vec<Vec<FeedMessage>>) -> Self {
        let listener = tokio::net::UnixListener::bind(path).expect("a free path");
        let inner = Arc::new(Inner { scripts: Mutex::new(scripts.into()), ..Inner::default() });
        let store = Self { address: format!("unix:{}", path.display()), inner };
        let server = tonic::transport::Server::builder().add_service(StoreServer::new(store.clone()));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        store
    }

    /// Joinings so far.
    pub(crate) fn joined(&self) -> usize {
        self.inner.readers.lock().expect("not poisoned").len()
    }

    /// Sends a message to the latest reader.
    pub(crate) async fn send(&self, message: FeedMessage) {
        let reader = self.inner.readers.lock().expect("not poisoned").last().cloned();
        reader.expect("somebody joined").send(message).await.expect("still reading");
    }

    /// Hangs up on all readers.
    pub(crate) fn hang_up(&self) {
        let (closed, _) = mpsc::channel(1);
        self.inner
            .readers
            .lock()
            .expect("not poisoned")
            .iter_mut()
            .for_each(|reader| *reader = closed.clone());
    }
}

#[tonic::async_trait]
impl Store for ScriptedStore {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Err(Status::unimplemented("not part of the test"))
    }

    async fn flush(&self, _: Request<FlushRequest>) -> Result<Response<FlushReply>, Status> {
        Err(Status::unimplemented("not part of the test"))
    }

    async fn challenge(&self, _: Request<ChallengeRequest>) -> Result<Response<ChallengeReply>, Status> {
        Ok(Response::new(ChallengeReply { challenge: CHALLENGE.to_vec() }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<FeedMessage, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let proof = Proof::new(&secret(), Purpose::Watch, CHALLENGE);
        if request.tenant != "default" || request.challenge != CHALLENGE || !proof.accepts(&request.proof) {
            return Err(Status::unauthenticated("wrong tenant or proof"));
        }
        let script = self.inner.scripts.lock().expect("not poisoned").pop_front();
        let Some(script) = script else { return Err(Status::unavailable("no script left")) };
        let (sender, live) = mpsc::channel(16);
        self.inner.readers.lock().expect("not poisoned").push(sender);
        let messages = tokio_stream::iter(script).chain(ReceiverStream::new(live)).map(Ok);
        Ok(Response::new(Box::pin(messages)))
    }
}

/// A snapshot of a node with one shard that holds these blocks.
pub(crate) fn snapshot(held: Vec<Body>) -> Vec<FeedMessage> {
    let registered = Registered {
        identity: Some(Identity::from(&identity())),
        fingerprint: identity().fingerprint().0.to_vec(),
    };
    let begin = [Body::SnapshotBegin(SnapshotBegin { shards: 1 }), Body::Registered(registered)];
    let end = [Body::SnapshotEnd(SnapshotEnd { seq: 10 })];
    begin.into_iter().chain(held).chain(end).map(|body| message(0, body)).collect()
}

pub(crate) fn message(seq: u64, body: Body) -> FeedMessage {
    FeedMessage { incarnation: 1, shard: 0, seq, body: Some(body) }
}

/// A chain from its root came to a tier.
pub(crate) fn stored(tier: Tier, holder: &str, keys: &[BlockKey]) -> Body {
    Body::Stored(Stored {
        tier: tier.into(),
        holder: holder.into(),
        parent: Vec::new(),
        depth: 0,
        keys: pack(keys),
    })
}

pub(crate) fn removed(tier: Tier, holder: &str, keys: &[BlockKey]) -> Body {
    Body::Removed(Removed { tier: tier.into(), holder: holder.into(), keys: pack(keys) })
}

/// A heartbeat of a shard that holds these blocks in its pinned tier.
pub(crate) fn heartbeat(seq: u64, pinned: &[BlockKey]) -> Body {
    let mut digest = Digest::default();
    pinned.iter().for_each(|key| digest.add(key, Tier::Pinned, ""));
    Body::Heartbeat(Heartbeat { seq, entries: digest.entries, digest: digest.bits })
}
