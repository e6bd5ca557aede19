//! The store's control service (gRPC): what it holds, and waiting until that is on disk.

use std::time::Duration;

use hearth_proto::v1::{FlushRequest, StatusReply, StatusRequest, Tier};
use tonic::transport::{Channel, Endpoint};

mod service {
    #![expect(unreachable_pub, clippy::pedantic, reason = "generated from the schema")]
    tonic::include_proto!("hearth.v1");
}

use service::store_client::StoreClient;

/// How long a call may take beyond the deadline that it carries.
const GRACE: Duration = Duration::from_secs(5);

/// The store did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// Its address is none.
    #[error("{0:?} is no address of a store's control service")]
    Address(String),
    /// Nobody answers there.
    #[error("the store node does not answer on {address}")]
    Connect {
        /// Where it was looked for.
        address: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// It answered with an error.
    #[error("the store node refused {call}")]
    Call {
        /// What was asked.
        call: &'static str,
        /// Its answer.
        source: Box<tonic::Status>,
    },
    /// Blocks are still on their way to disk.
    #[error("{0} blocks were still not on NVMe at the deadline; is the disk slow or full?")]
    NotFlushed(u64),
}

/// A connection to a store's control service.
#[derive(Debug)]
pub(crate) struct Control {
    client: StoreClient<Channel>,
}

impl Control {
    /// Connects to `127.0.0.1:PORT`.
    pub(crate) async fn connect(address: &str) -> Result<Self, ControlError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| ControlError::Address(address.to_owned()))?
            .connect_timeout(GRACE);
        let channel = endpoint
            .connect()
            .await
            .map_err(|source| ControlError::Connect { address: address.to_owned(), source })?;
        Ok(Self { client: StoreClient::new(channel) })
    }

    /// Blocks that the store holds in a tier.
    pub(crate) async fn blocks(&mut self, tier: Tier) -> Result<u64, ControlError> {
        let reply: StatusReply = self
            .client
            .status(request(StatusRequest {}, GRACE))
            .await
            .map_err(|status| ControlError::Call { call: "its status", source: Box::new(status) })?
            .into_inner();
        Ok(reply.tiers.iter().filter(|status| status.tier() == tier).map(|status| status.blocks).sum())
    }

    /// Waits until every block sealed so far is on NVMe.
    pub(crate) async fn flush(&mut self, deadline: Duration) -> Result<(), ControlError> {
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        let reply = self
            .client
            .flush(request(FlushRequest { deadline_ms }, deadline + GRACE))
            .await
            .map_err(|status| ControlError::Call { call: "to flush", source: Box::new(status) })?
            .into_inner();
        if reply.writes_pending == 0 { Ok(()) } else { Err(ControlError::NotFlushed(reply.writes_pending)) }
    }
}

fn request<T>(message: T, timeout: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}
