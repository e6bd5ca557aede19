//! What a node's event feed says that engines hold, read from the snapshots that every shard sends first.

use std::collections::BTreeSet;

use hearth_connector::proto::auth::{Proof, Purpose};
use hearth_connector::proto::key::{self, BlockKey};
use hearth_connector::proto::tenant::{TenantName, TenantSecret};
use hearth_connector::proto::v1::{self, feed_message::Body};

#[expect(unreachable_pub, reason = "generated code")]
mod control {
    include!(concat!(env!("OUT_DIR"), "/hearth.v1.rs"));
}

/// Holders and keys in the tier `engine`, sorted.
pub(crate) fn advertised(
    address: &str,
    (tenant, secret): (TenantName, TenantSecret),
) -> Vec<(String, BlockKey)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let held = runtime.block_on(snapshot(address, tenant, secret)).expect("the node answers");
    held.into_iter().collect()
}

async fn snapshot(
    address: &str,
    tenant: TenantName,
    secret: TenantSecret,
) -> Result<BTreeSet<(String, BlockKey)>, Box<dyn std::error::Error>> {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    let mut client = control::store_client::StoreClient::new(channel);
    let challenge = client.challenge(v1::ChallengeRequest {}).await?.into_inner().challenge;
    let proof = Proof::new(&secret, Purpose::Watch, &challenge).to_bytes();
    let request = v1::WatchRequest { tenant: tenant.to_string(), challenge, proof };
    let mut feed = client.watch(request).await?.into_inner();
    let mut held = BTreeSet::new();
    let (mut shards, mut ended) = (u32::MAX, 0);
    while ended < shards {
        let message = feed.message().await?.ok_or("the feed ended")?;
        match message.body.ok_or("an empty message")? {
            Body::SnapshotBegin(begin) => shards = begin.shards,
            Body::SnapshotEnd(_) => ended += 1,
            Body::Stored(stored) if stored.tier == i32::from(v1::Tier::Engine) => {
                let keys = key::unpack(&stored.keys)?;
                held.extend(keys.into_iter().map(|key| (stored.holder.clone(), key)));
            }
            // A shard whose snapshot is here may already send what changed since.
            Body::Removed(removed) if removed.tier == i32::from(v1::Tier::Engine) => {
                for key in key::unpack(&removed.keys)? {
                    held.remove(&(removed.holder.clone(), key));
                }
            }
            Body::Stored(_) | Body::Removed(_) | Body::Registered(_) | Body::Heartbeat(_) => {}
        }
    }
    Ok(held)
}
