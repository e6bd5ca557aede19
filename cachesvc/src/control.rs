//! The control plane: status, flush and the event feed, over gRPC.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use hearth_proto::auth::Purpose;
use hearth_proto::limit::DEADLINE_MS_MAX;
use hearth_proto::v1::{
    ChallengeReply, ChallengeRequest, FeedMessage, FlushReply, FlushRequest, StatusReply, StatusRequest,
    Tier, TierStatus, WatchRequest,
};
use hearth_proto::version::PROTOCOL;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use self::service::store_server::{Store, StoreServer};
use crate::node::Shared;
use crate::store::message::{Answer, Event, ShardStatus, SubscriberId};
use crate::store::runner::{FEED_BATCHES_MAX, Feed, Message};

/// The service as tonic generates it.
#[expect(unreachable_pub, clippy::allow_attributes, reason = "generated code")]
mod service {
    include!(concat!(env!("OUT_DIR"), "/hearth.v1.rs"));
}

/// Bytes of a request of the control plane: all of them are small.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// Answers the control plane.
#[derive(Debug)]
pub struct Control {
    shared: Arc<Shared>,
    subscribers: AtomicU64,
}

impl Control {
    /// The service, to be added to a server.
    pub fn service(shared: Arc<Shared>) -> StoreServer<Self> {
        StoreServer::new(Self { shared, subscribers: AtomicU64::new(1) })
            .max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    async fn shard_status(&self) -> Result<ShardStatus, Status> {
        let mut sum = ShardStatus::default();
        for shard in &self.shared.shards {
            let answer = shard.ask(|reply| Event::Status { reply }).await;
            let Ok(Answer::Status(status)) = answer else { return Err(overloaded()) };
            sum.pinned_blocks += status.pinned_blocks;
            sum.pinned_bytes_used += status.pinned_bytes_used;
            sum.nvme_blocks += status.nvme_blocks;
            sum.nvme_bytes_used += status.nvme_bytes_used;
            sum.nvme_writes_pending += status.nvme_writes_pending;
            if !status.nvme_degraded.is_empty() {
                sum.nvme_degraded = status.nvme_degraded;
            }
        }
        Ok(sum)
    }
}

fn overloaded() -> Status {
    Status::unavailable("the node is overloaded or stopping; try again")
}

#[tonic::async_trait]
impl Store for Control {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let sum = self.shard_status().await?;
        let pinned = TierStatus {
            tier: Tier::Pinned.into(),
            backend: "memfd".to_owned(),
            bytes_capacity: self.shared.pinned_bytes,
            bytes_used: sum.pinned_bytes_used,
            blocks: sum.pinned_blocks,
            writes_pending: 0,
            degraded: String::new(),
        };
        let nvme = self.shared.nvme_backend.clone().map(|backend| TierStatus {
            tier: Tier::Nvme.into(),
            backend,
            bytes_capacity: self.shared.nvme_bytes,
            bytes_used: sum.nvme_bytes_used,
            blocks: sum.nvme_blocks,
            writes_pending: sum.nvme_writes_pending,
            degraded: sum.nvme_degraded,
        });
        Ok(Response::new(StatusReply {
            node: self.shared.name.clone(),
            incarnation: self.shared.incarnation,
            version_major: PROTOCOL.major,
            version_minor: PROTOCOL.minor,
            uptime_ms: u64::try_from(self.shared.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            shards: u32::try_from(self.shared.shards.len()).expect("shards are few"),
            sessions: u32::try_from(self.shared.sessions.get()).unwrap_or(0),
            tiers: std::iter::once(pinned).chain(nvme).collect(),
        }))
    }

    async fn flush(&self, request: Request<FlushRequest>) -> Result<Response<FlushReply>, Status> {
        let wait = Duration::from_millis(request.into_inner().deadline_ms.min(DEADLINE_MS_MAX).into());
        let deadline = Instant::now() + wait;
        let mut writes_pending = 0;
        for shard in &self.shared.shards {
            match shard.ask(|reply| Event::Flush { deadline, reply }).await {
                Ok(Answer::Flushed(pending)) => writes_pending += pending,
                _ => return Err(overloaded()),
            }
        }
        Ok(Response::new(FlushReply { writes_pending }))
    }

    async fn challenge(&self, _: Request<ChallengeRequest>) -> Result<Response<ChallengeReply>, Status> {
        Ok(Response::new(ChallengeReply { challenge: self.shared.challenger.challenge(Instant::now()) }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<FeedMessage, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let proven = self.shared.tenants.find(&request.tenant).filter(|(_, tenant)| {
            let proof = (request.challenge.as_slice(), request.proof.as_slice());
            self.shared.challenger.accepts(proof, &tenant.secret, Purpose::Watch, Instant::now())
        });
        let Some((tenant, _)) = proven else {
            let message = "no such tenant, or the wrong secret: use the key file that the node uses";
            return Err(Status::unauthenticated(message));
        };
        let (sender, batches) = mpsc::channel(FEED_BATCHES_MAX);
        let feed = Feed { batches: sender, cut: Arc::default() };
        let subscriber = SubscriberId(self.subscribers.fetch_add(1, Ordering::Relaxed));
        for shard in &self.shared.shards {
            let message = Message::Subscribe { tenant, subscriber, feed: feed.clone() };
            shard.try_send(message).map_err(|_| overloaded())?;
        }
        let behind = async move { feed.cut.notified().await };
        let messages =
            ReceiverStream::new(batches).flat_map(futures_util::stream::iter).map(Ok).take_until(behind);
        Ok(Response::new(Box::pin(messages)))
    }
}
