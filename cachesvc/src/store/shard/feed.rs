//! The event feed: what readers are told, in which order.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use hearth_proto::event::Digest;
use hearth_proto::identity::Fingerprint;
use hearth_proto::key::{BlockKey, pack};
use hearth_proto::v1::{
    FeedMessage, Heartbeat, Identity, Registered, Removed, SnapshotBegin, SnapshotEnd, Stored, Tier,
    feed_message::Body,
};

use super::{HEARTBEAT, Shard};
use crate::store::block::{OnNvme, Pinned};
use crate::store::message::{Effect, Link, SubscriberId, TenantIndex};

/// Keys of one `Stored` message.
const RUN_BLOCKS_MAX: usize = 4096;

/// The feed of one tenant.
#[derive(Debug, Default)]
pub(super) struct Feed {
    seq: u64,
    digest: Digest,
    pinned_blocks: u64,
    nvme_blocks: u64,
    readers: BTreeSet<SubscriberId>,
    identities: HashMap<Fingerprint, Identity>,
}

/// A block in an engine's own pages.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) parent: Option<BlockKey>,
    pub(super) depth: u32,
    pub(super) sessions: u32,
}

impl Feed {
    /// Blocks of a tier of the node.
    pub(super) fn blocks(&self, tier: Tier) -> u64 {
        match tier {
            Tier::Pinned => self.pinned_blocks,
            Tier::Nvme => self.nvme_blocks,
            Tier::Engine | Tier::Unspecified => 0,
        }
    }

    #[cfg(test)]
    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    pub(super) fn stored_before_any_reader(&mut self, key: &BlockKey, tier: Tier) {
        self.add(key, tier, "");
    }

    fn add(&mut self, key: &BlockKey, tier: Tier, holder: &str) {
        self.digest.add(key, tier, holder);
        if let Some(blocks) = self.counter(tier) {
            *blocks += 1;
        }
    }

    fn remove(&mut self, key: &BlockKey, tier: Tier, holder: &str) {
        self.digest.remove(key, tier, holder);
        if let Some(blocks) = self.counter(tier) {
            *blocks -= 1;
        }
    }

    fn counter(&mut self, tier: Tier) -> Option<&mut u64> {
        match tier {
            Tier::Pinned => Some(&mut self.pinned_blocks),
            Tier::Nvme => Some(&mut self.nvme_blocks),
            Tier::Engine | Tier::Unspecified => None,
        }
    }
}

impl<R> Shard<R> {
    /// Blocks came to a tier of the node.
    pub(super) fn stored(&mut self, tenant: TenantIndex, tier: Tier, links: &[Link]) {
        self.stored_at(tenant, (tier, ""), links);
    }

    /// Blocks came to a tier of a holder.
    pub(super) fn stored_at(&mut self, tenant: TenantIndex, (tier, holder): (Tier, &str), links: &[Link]) {
        let feed = &mut self.tenant(tenant).feed;
        for link in links {
            feed.add(&link.key, tier, holder);
        }
        for run in runs(links) {
            self.publish(tenant, Body::Stored(stored(run, (tier, holder))));
        }
    }

    /// A block left a tier of the node.
    pub(super) fn removed(&mut self, tenant: TenantIndex, tier: Tier, key: &BlockKey) {
        self.removed_at(tenant, (tier, ""), key);
    }

    /// A block left a tier of a holder.
    pub(super) fn removed_at(&mut self, tenant: TenantIndex, (tier, holder): (Tier, &str), key: &BlockKey) {
        self.tenant(tenant).feed.remove(key, tier, holder);
        let removed = Removed { tier: tier.into(), holder: holder.to_owned(), keys: key.0.to_vec() };
        self.publish(tenant, Body::Removed(removed));
    }

    pub(super) fn registered(&mut self, tenant: TenantIndex, identity: Identity, fingerprint: Fingerprint) {
        let before = self.tenant(tenant).feed.identities.insert(fingerprint, identity.clone());
        if before.is_none() {
            self.publish(tenant, registered(identity, fingerprint));
        }
    }

    /// Counts an event and sends it to every reader. It is counted when there is none, too.
    fn publish(&mut self, tenant: TenantIndex, body: Body) {
        let feed = &mut self.tenant(tenant).feed;
        feed.seq += 1;
        let (seq, readers) = (feed.seq, feed.readers.clone());
        for reader in readers {
            let message = self.message(seq, body.clone());
            self.effects.push(Effect::Publish(reader, vec![message]));
        }
    }

    fn message(&self, seq: u64, body: Body) -> FeedMessage {
        FeedMessage { incarnation: self.config.incarnation, shard: self.config.shard, seq, body: Some(body) }
    }

    /// A reader joins: it gets all that the tenant has here, then every change.
    pub(super) fn subscribe(&mut self, tenant: TenantIndex, subscriber: SubscriberId) {
        let snapshot = self.snapshot(tenant);
        self.effects.push(Effect::Publish(subscriber, snapshot));
        self.tenant(tenant).feed.readers.insert(subscriber);
        self.subscribers.insert(subscriber, tenant);
    }

    pub(super) fn unsubscribe(&mut self, subscriber: SubscriberId) {
        if let Some(tenant) = self.subscribers.remove(&subscriber) {
            self.tenant(tenant).feed.readers.remove(&subscriber);
        }
    }

    fn snapshot(&mut self, tenant: TenantIndex) -> Vec<FeedMessage> {
        let shards = self.config.shards;
        let owner = self.tenant(tenant);
        let mut bodies = vec![Body::SnapshotBegin(SnapshotBegin { shards })];
        bodies.extend(
            owner.feed.identities.iter().map(|(&print, identity)| registered(identity.clone(), print)),
        );
        let link = |key, parent, index| Link { key, parent, index };
        for tier in [Tier::Pinned, Tier::Nvme] {
            let here = owner.blocks.iter().filter(|(_, block)| match tier {
                Tier::Pinned => matches!(block.pinned, Pinned::Ready { .. }),
                _ => matches!(block.nvme, OnNvme::Ready { .. }),
            });
            let links = here.map(|(_, block)| link(block.key, block.parent, block.depth)).collect();
            bodies.extend(snapshot_runs(links, (tier, "")));
        }
        for (holder, blocks) in &owner.held {
            let links = blocks.iter().map(|(&key, held)| link(key, held.parent, held.depth)).collect();
            bodies.extend(snapshot_runs(links, (Tier::Engine, holder)));
        }
        bodies.push(Body::SnapshotEnd(SnapshotEnd { seq: owner.feed.seq }));
        bodies.into_iter().map(|body| self.message(0, body)).collect()
    }

    /// Tells every reader where its tenant's feed stands, when it is time.
    pub(super) fn heartbeat(&mut self, now: Instant) {
        if self.subscribers.is_empty() {
            self.heartbeat_at = None;
            return;
        }
        if *self.heartbeat_at.get_or_insert(now + HEARTBEAT) > now {
            return;
        }
        self.heartbeat_at = Some(now + HEARTBEAT);
        let readers: Vec<(SubscriberId, TenantIndex)> =
            self.subscribers.iter().map(|(&s, &t)| (s, t)).collect();
        for (reader, tenant) in readers {
            let feed = &self.tenant(tenant).feed;
            let beat = Heartbeat { seq: feed.seq, entries: feed.digest.entries, digest: feed.digest.bits };
            let message = self.message(0, Body::Heartbeat(beat));
            self.effects.push(Effect::Publish(reader, vec![message]));
        }
    }
}

fn registered(identity: Identity, fingerprint: Fingerprint) -> Body {
    Body::Registered(Registered { identity: Some(identity), fingerprint: fingerprint.0.to_vec() })
}

fn stored(run: &[Link], (tier, holder): (Tier, &str)) -> Stored {
    let keys: Vec<BlockKey> = run.iter().map(|link| link.key).collect();
    Stored {
        tier: tier.into(),
        holder: holder.to_owned(),
        parent: run[0].parent.map_or_else(Vec::new, |key| key.0.to_vec()),
        depth: run[0].index,
        keys: pack(&keys),
    }
}

/// Cuts links into runs of consecutive blocks.
fn runs(links: &[Link]) -> impl Iterator<Item = &[Link]> {
    let run = links.chunk_by(|a, b| b.parent == Some(a.key) && b.index == a.index + 1);
    run.flat_map(|run| run.chunks(RUN_BLOCKS_MAX))
}

/// All blocks of a tier as runs, each followed to its end along one child.
fn snapshot_runs(mut links: Vec<Link>, place: (Tier, &str)) -> Vec<Body> {
    links.sort_unstable_by_key(|link| link.index);
    let mut next: HashMap<BlockKey, Vec<usize>> = HashMap::new();
    for (at, link) in links.iter().enumerate() {
        if let Some(parent) = link.parent {
            next.entry(parent).or_default().push(at);
        }
    }
    let mut taken = vec![false; links.len()];
    let mut ordered = Vec::with_capacity(links.len());
    for start in 0..links.len() {
        let mut at = Some(start);
        while let Some(link) = at.filter(|&at| !std::mem::replace(&mut taken[at], true)) {
            ordered.push(links[link]);
            at =
                next.get(&links[link].key).and_then(|children| children.iter().copied().find(|&c| !taken[c]));
        }
    }
    runs(&ordered).map(|run| Body::Stored(stored(run, place))).collect()
}
