//! Who has what: a copy of the store's knowledge, built from its event feed and from nothing else.
//!
//! [`Index::apply`] takes one message of the feed; when the copy can no longer be right it says so with a [`Rejoin`],
//! and the feed joins again from a snapshot. [`Index::matches`] answers for a whole prompt. The answer may be old; it
//! is good for choosing an endpoint and for nothing else.

mod matching;
mod places;
mod rejoin;
mod runs;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use hearth_proto::event::Digest;
use hearth_proto::identity::{CacheIdentity, IdentityError};
use hearth_proto::key::{BlockKey, unpack};
use hearth_proto::v1::feed_message::Body;
use hearth_proto::v1::{FeedMessage, Heartbeat, Registered, Removed, Stored, Tier};

use self::matching::Walk;
pub use self::matching::{HolderMatch, Loadable, Match, StoreSpan};
pub use self::places::PLACES_MAX;
use self::places::Places;
pub use self::rejoin::{ProtocolError, Rejoin};
use self::runs::Runs;

/// Shards that a node may have.
pub const SHARDS_MAX: u32 = 4096;
/// Blocks of one index: about 1 GiB.
pub const BLOCKS_MAX: usize = 1 << 26;
/// Identities of which the index keeps track. Of one model it uses the latest [`IDENTITIES_PER_MODEL_MAX`].
pub const IDENTITIES_MAX: usize = 1024;
/// Identities under which one model's prompts are looked up: more than one while its engines are being replaced.
pub const IDENTITIES_PER_MODEL_MAX: usize = 4;

/// The index, written by the feed and read by every request. Held for microseconds, never across an await.
pub type SharedIndex = Arc<RwLock<Index>>;

/// A copy of who has what.
#[derive(Debug, Default)]
pub struct Index {
    incarnation: Option<u64>,
    /// Shards that the node says it has; 0 before it has said so.
    shards_announced: u32,
    shards: BTreeMap<u32, Shard>,
    places: Places,
    runs: Runs,
    /// By the name that users ask for; the latest last.
    models: BTreeMap<String, Vec<Arc<CacheIdentity>>>,
}

/// What is known of one shard of the store.
#[derive(Debug, Default)]
struct Shard {
    progress: Progress,
    digest: Digest,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Progress {
    /// Nothing has come, so a snapshot must.
    #[default]
    Unknown,
    /// Between the snapshot's two ends.
    Snapshot,
    /// Following; the last event had this number.
    Following { seq: u64 },
}

impl Index {
    /// Takes one message of the feed.
    ///
    /// # Errors
    /// The copy is of no use any more: [`Self::clear`] it and join again.
    pub fn apply(&mut self, message: FeedMessage) -> Result<(), Rejoin> {
        let found = message.incarnation;
        match self.incarnation {
            Some(ours) if ours != found => return Err(Rejoin::Incarnation { ours, found }),
            _ => self.incarnation = Some(found),
        }
        let shard = message.shard;
        if shard >= SHARDS_MAX {
            return Err(ProtocolError::Shard(shard).into());
        }
        match message.body.ok_or(ProtocolError::Kind)? {
            Body::SnapshotBegin(begin) => self.begin(shard, begin.shards),
            Body::SnapshotEnd(end) => self.end(shard, end.seq),
            Body::Heartbeat(heartbeat) => self.check(shard, heartbeat),
            Body::Stored(stored) => {
                self.advance(shard, message.seq)?;
                self.stored(shard, &stored)
            }
            Body::Removed(removed) => {
                self.advance(shard, message.seq)?;
                self.removed(shard, &removed)
            }
            Body::Registered(registered) => {
                self.advance(shard, message.seq)?;
                self.registered(registered)
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// How much of the chain `keys` is held, and by whom.
    ///
    /// `keys` is a chain. Costs a table lookup and a few comparisons per run of blocks. A hole ends an engine's match; the store's
    /// blocks are reported behind a hole, too, as far as an engine's own pages bridge it.
    pub fn matches(&self, keys: &[BlockKey]) -> Match {
        let mut walk = Walk::new(&self.places);
        while let Some(at) = keys.get(walk.blocks).and_then(|key| self.runs.find(key.prefix())) {
            let from = walk.blocks;
            let agreeing = self.runs.agreeing_chain(at, &keys[from..]);
            for (blocks, holders) in self.runs.pieces(at, agreeing) {
                if !walk.step(blocks, holders) {
                    return walk.finish();
                }
            }
        }
        walk.finish()
    }

    /// The identities of the model that users ask for under this name, the latest first.
    pub fn identities(&self, model: &str) -> Vec<Arc<CacheIdentity>> {
        let known = self.models.get(model).map(Vec::as_slice).unwrap_or_default();
        known.iter().rev().take(IDENTITIES_PER_MODEL_MAX).cloned().collect()
    }

    /// Whether the snapshots of all shards have come.
    pub fn complete(&self) -> bool {
        let following = |shard: &&Shard| matches!(shard.progress, Progress::Following { .. });
        let announced = usize::try_from(self.shards_announced).expect("32 bits fit a usize");
        announced > 0 && self.shards.values().filter(following).count() == announced
    }

    /// Blocks in the index.
    pub fn blocks(&self) -> usize {
        self.runs.blocks()
    }

    /// Bytes that the index takes, to within the allocator's overhead. Takes time in proportion to its runs.
    pub fn bytes(&self) -> usize {
        self.runs.bytes()
    }

    fn begin(&mut self, shard: u32, shards: u32) -> Result<(), Rejoin> {
        if shard >= shards || shards > SHARDS_MAX {
            return Err(ProtocolError::Shard(shard.max(shards)).into());
        }
        self.shards_announced = shards;
        let places = &mut self.places;
        self.runs.forget(shard, |blocks, holders| {
            let blocks = u64::try_from(blocks).expect("blocks of a run fit 64 bits");
            holders.iter().for_each(|place| places.went(place, blocks));
        });
        if shard == REGISTRY_SHARD {
            self.models.clear();
        }
        self.shards.insert(shard, Shard { progress: Progress::Snapshot, digest: Digest::default() });
        Ok(())
    }

    fn end(&mut self, shard: u32, seq: u64) -> Result<(), Rejoin> {
        let state = self.shards.entry(shard).or_default();
        if state.progress != Progress::Snapshot {
            return Err(ProtocolError::Order(shard).into());
        }
        state.progress = Progress::Following { seq };
        Ok(())
    }

    /// Accepts the number of an event, or finds that events are missing.
    fn advance(&mut self, shard: u32, found: u64) -> Result<(), Rejoin> {
        match &mut self.shards.entry(shard).or_default().progress {
            Progress::Snapshot if found == 0 => Ok(()),
            Progress::Following { seq } if seq.checked_add(1) == Some(found) => {
                *seq = found;
                Ok(())
            }
            Progress::Following { seq } => Err(Rejoin::Gap { shard, last: *seq, found }),
            Progress::Snapshot | Progress::Unknown => Err(ProtocolError::Order(shard).into()),
        }
    }

    /// Compares with what the shard says it holds.
    fn check(&mut self, shard: u32, heartbeat: Heartbeat) -> Result<(), Rejoin> {
        let state = self.shards.entry(shard).or_default();
        let Progress::Following { seq } = state.progress else {
            return Err(ProtocolError::Order(shard).into());
        };
        if heartbeat.seq != seq {
            return Err(Rejoin::Gap { shard, last: seq, found: heartbeat.seq });
        }
        let theirs = Digest { entries: heartbeat.entries, bits: heartbeat.digest };
        if state.digest != theirs {
            return Err(Rejoin::Digest { shard, ours: state.digest.entries, theirs: theirs.entries });
        }
        Ok(())
    }

    fn stored(&mut self, shard: u32, stored: &Stored) -> Result<(), Rejoin> {
        let tier = known_tier(stored.tier)?;
        let keys = unpack(&stored.keys).map_err(ProtocolError::from)?;
        let parent = unpack(&stored.parent).map_err(ProtocolError::from)?;
        let full = Rejoin::Full { blocks: self.runs.blocks() };
        if self.runs.blocks().saturating_add(keys.len()) > BLOCKS_MAX {
            return Err(full);
        }
        let Some(place) = self.places.intern(tier, &stored.holder) else { return Err(full) };
        let (digest, places) = (&mut self.shards.entry(shard).or_default().digest, &mut self.places);
        let mut add = |key: &BlockKey| {
            digest.add(key, tier, &stored.holder);
            places.came(place, 1);
        };
        let mut parent = parent.first().and_then(|parent| self.runs.find(parent.prefix()));
        let mut next = 0;
        while let Some(key) = keys.get(next) {
            if let Some(at) = self.runs.find(key.prefix()) {
                same_shard(&self.runs, at, (shard, key))?;
                let blocks = self.runs.agreeing(at, &keys[next..]);
                self.runs.hold(at, blocks, place, |position| add(&keys[next + position]));
                parent = Some(at.plus(blocks - 1));
                next += blocks;
            } else {
                let Ok(at) = self.runs.push(key.prefix(), parent, shard, place) else { return Err(full) };
                add(key);
                parent = Some(at);
                next += 1;
            }
        }
        Ok(())
    }

    fn removed(&mut self, shard: u32, removed: &Removed) -> Result<(), Rejoin> {
        let tier = known_tier(removed.tier)?;
        let keys = unpack(&removed.keys).map_err(ProtocolError::from)?;
        // What was never there is removed already; should the store disagree, its digest will say so.
        let Some(place) = self.places.find(tier, &removed.holder) else { return Ok(()) };
        let (digest, places) = (&mut self.shards.entry(shard).or_default().digest, &mut self.places);
        let mut next = 0;
        while let Some(key) = keys.get(next) {
            let Some(at) = self.runs.find(key.prefix()) else {
                next += 1;
                continue;
            };
            same_shard(&self.runs, at, (shard, key))?;
            let blocks = self.runs.agreeing(at, &keys[next..]);
            self.runs.release(at, blocks, place, |position| {
                digest.remove(&keys[next + position], tier, &removed.holder);
                places.went(place, 1);
            });
            next += blocks;
        }
        Ok(())
    }

    fn registered(&mut self, registered: Registered) -> Result<(), Rejoin> {
        let identity = registered.identity.ok_or(ProtocolError::Identity(IdentityError::Missing))?;
        let identity = CacheIdentity::try_from(identity).map_err(ProtocolError::from)?;
        if registered.fingerprint != identity.fingerprint().0 {
            return Err(ProtocolError::Fingerprint(identity.model).into());
        }
        if self.models.values().map(Vec::len).sum::<usize>() >= IDENTITIES_MAX {
            return Err(Rejoin::Full { blocks: self.runs.blocks() });
        }
        // Users ask for an adapter by its own name.
        let name = if identity.adapter.is_empty() { &identity.model } else { &identity.adapter };
        let known = self.models.entry(name.clone()).or_default();
        known.retain(|other| **other != identity);
        known.push(Arc::new(identity));
        Ok(())
    }
}

/// Identities are registered with this shard.
const REGISTRY_SHARD: u32 = 0;

fn known_tier(number: i32) -> Result<Tier, ProtocolError> {
    match Tier::try_from(number) {
        Ok(Tier::Unspecified) | Err(_) => Err(ProtocolError::Tier(number)),
        Ok(tier) => Ok(tier),
    }
}

fn same_shard(runs: &Runs, at: runs::At, (found, key): (u32, &BlockKey)) -> Result<(), ProtocolError> {
    let ours = runs.shard(at);
    if ours == found { Ok(()) } else { Err(ProtocolError::Moved { key: *key, ours, found }) }
}
