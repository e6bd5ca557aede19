//! The reference: endpoints of one process, with every fault a network can have on demand.
//!
//! A [`Fabric`] joins the endpoints and holds what each has registered. Nothing happens by itself: an
//! operation lands at the first reap at or after its time, the time is what the caller says it is, and
//! the faults are values, so that a failing run can be repeated from its seed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Transport;
use crate::caps::{Caps, Limit, MemoryKinds, Reach, TransportKind};
use crate::error::Error;
use crate::inflight::InFlight;
use crate::op::{Batch, BatchId, Direction, Event, Op, Refused, SEGMENTS_MAX};
use crate::peer::{PEERS_MAX, PeerAddress, PeerId};
use crate::region::{Access, Export, Region, RegionId, RegionSlice};
use crate::remote::{RemoteRegion, RemoteSlice};

/// Operations in flight per peer.
pub const INFLIGHT_OPS_MAX: u32 = 64;

/// What goes wrong at one endpoint. Operations are counted from none in the order they are posted
/// there. The default is a fabric without fault or delay.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Drives [`Faults::reorder`].
    pub seed: u64,
    /// From post to landing.
    pub delay: Duration,
    /// Operations that have landed together do so in an order drawn from the seed.
    pub reorder: bool,
    /// Operations that fail without moving a byte.
    pub fail: BTreeSet<u64>,
    /// Operations whose bytes land but whose completion never comes.
    pub lose: BTreeSet<u64>,
    /// Operations that deliver their first byte with a bit flipped.
    pub corrupt: BTreeSet<u64>,
}

/// The memory offered by all endpoints, by name. Clones name the same fabric.
#[derive(Clone, Debug, Default)]
pub struct Fabric {
    // Held for one look-up or one change; copies run outside it.
    endpoints: Arc<Mutex<HashMap<Vec<u8>, Endpoint>>>,
}

type Endpoint = HashMap<RegionId, (Region, Access)>;

impl Fabric {
    /// Adds an endpoint. Peers reach it by [`PeerAddress::Named`].
    #[must_use]
    pub fn join(&self, name: &[u8], faults: Faults) -> Loopback {
        self.endpoints().insert(name.to_vec(), Endpoint::new());
        Loopback {
            name: name.to_vec(),
            fabric: self.clone(),
            draw: faults.seed,
            faults,
            peers: BTreeMap::new(),
            peers_opened: 0,
            inflight: InFlight::new(INFLIGHT_OPS_MAX),
            pending: Vec::new(),
            ops_posted: 0,
        }
    }

    /// Ends an endpoint as a crash would.
    pub fn kill(&self, name: &[u8]) {
        self.endpoints().remove(name);
    }

    fn endpoints(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Endpoint>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_alive(&self, name: &[u8]) -> bool {
        self.endpoints().contains_key(name)
    }

    /// The owner's check of what a peer names.
    fn window(&self, name: &[u8], slice: &RemoteSlice, direction: Direction) -> Result<RegionSlice, Error> {
        let region = slice.region();
        let endpoints = self.endpoints();
        let owner = endpoints.get(name).ok_or(Error::PeerGone { peer: slice.peer() })?;
        let (memory, grant) = owner.get(&region).ok_or(Error::UnknownRegion { region })?;
        if memory.generation() != slice.generation() {
            let (stated, actual) = (slice.generation(), memory.generation());
            return Err(Error::WrongGeneration { region, stated, actual });
        }
        if direction == Direction::Write && *grant == Access::Read {
            return Err(Error::ReadOnly);
        }
        let start = usize::try_from(slice.offset()).unwrap_or(usize::MAX);
        memory.slice(start..start.saturating_add(slice.len()))
    }
}

/// One endpoint of a [`Fabric`].
#[derive(Debug)]
pub struct Loopback {
    name: Vec<u8>,
    fabric: Fabric,
    faults: Faults,
    draw: u64,
    peers: BTreeMap<PeerId, Peer>,
    peers_opened: u64,
    inflight: InFlight,
    pending: Vec<Pending>,
    ops_posted: u64,
}

#[derive(Debug)]
struct Peer {
    name: Vec<u8>,
    gone: bool,
}

#[derive(Debug)]
struct Pending {
    due: Instant,
    peer: PeerId,
    place: (BatchId, usize),
    number: u64,
}

impl Loopback {
    fn peer(&self, peer: PeerId) -> Result<&Peer, Error> {
        self.peers.get(&peer).ok_or(Error::UnknownPeer { peer })
    }

    fn check_open(&self, peer: PeerId) -> Result<(), Error> {
        let open = self.peer(peer)?;
        if open.gone || !self.fabric.is_alive(&open.name) { Err(Error::PeerGone { peer }) } else { Ok(()) }
    }

    fn find_gone(&mut self, events: &mut Vec<Event>) {
        for (&peer, open) in &mut self.peers {
            if open.gone || self.fabric.is_alive(&open.name) {
                continue;
            }
            open.gone = true;
            self.pending.retain(|pending| pending.peer != peer);
            self.inflight.lose_peer(peer);
            events.push(Event::PeerGone(peer));
        }
    }

    fn land_due(&mut self, now: Instant) {
        let mut due: Vec<Pending> = self.pending.extract_if(.., |pending| pending.due <= now).collect();
        if self.faults.reorder {
            due.sort_by_cached_key(|_| {
                self.draw = self.draw.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
                self.draw >> 33
            });
        }
        for pending in due {
            let (batch, index) = pending.place;
            let Some(op) = self.inflight.op(batch, index) else { continue };
            let result = self.carry_out(op, &pending);
            if !self.faults.lose.contains(&pending.number) {
                self.inflight.land(pending.place, result, pending.due);
            }
        }
    }

    fn carry_out(&self, op: &Op, pending: &Pending) -> Result<Vec<u32>, Error> {
        if self.faults.fail.contains(&pending.number) {
            return Err(Error::Failed { transport: TransportKind::Loopback });
        }
        let owner = self.peer(pending.peer)?;
        let remote = self.fabric.window(&owner.name, op.remote(), op.direction())?;
        let digests = op.copy_with(&remote)?;
        if !self.faults.corrupt.contains(&pending.number) {
            return Ok(digests);
        }
        let landed = match op.direction() {
            Direction::Read => op.local().iter().find(|local| !local.is_empty()).cloned(),
            Direction::Write => (!remote.is_empty()).then_some(remote),
        };
        if let Some(landed) = landed {
            flip_bit(&landed)?;
        }
        Ok(match op.direction() {
            Direction::Read => op.digest_local(),
            Direction::Write => digests,
        })
    }
}

impl Transport for Loopback {
    fn caps(&self) -> Caps {
        let host = MemoryKinds { host: true, host_shared: true, device: false };
        Caps {
            kind: TransportKind::Loopback,
            reach: Reach::Process,
            local: host,
            remote: host,
            read: true,
            write: true,
            segments_max: Limit::Max(SEGMENTS_MAX as u64),
            op_bytes_max: Limit::Unlimited,
            inflight_ops_max: INFLIGHT_OPS_MAX,
            digest_fused: true,
            direct: false,
        }
    }

    fn register(&mut self, region: &Region, grant: Access) -> Result<Export, Error> {
        let mut endpoints = self.fabric.endpoints();
        let own = endpoints.get_mut(&self.name).ok_or(Error::Unreachable)?;
        own.insert(region.id(), (region.clone(), grant));
        Ok(Export { ticket: region.ticket(), fd: None })
    }

    fn deregister(&mut self, region: RegionId) {
        if let Some(own) = self.fabric.endpoints().get_mut(&self.name) {
            own.remove(&region);
        }
    }

    fn open_peer(&mut self, address: PeerAddress) -> Result<PeerId, Error> {
        let PeerAddress::Named(name) = address else {
            return Err(Error::WrongAddress { expected: "the name of an endpoint" });
        };
        if !self.fabric.is_alive(&name) {
            return Err(Error::Unreachable);
        }
        if self.peers.len() == PEERS_MAX {
            return Err(Error::TooManyPeers { max: PEERS_MAX });
        }
        let peer = PeerId(self.peers_opened);
        self.peers_opened += 1;
        self.peers.insert(peer, Peer { name, gone: false });
        Ok(peer)
    }

    fn import(&mut self, peer: PeerId, export: Export, access: Access) -> Result<RemoteRegion, Error> {
        self.check_open(peer)?;
        Ok(RemoteRegion::named(peer, export.ticket, access))
    }

    fn post(&mut self, batch: Batch, now: Instant) -> Result<BatchId, Refused> {
        if let Err(error) = self.check_open(batch.peer) {
            return Err(Refused { batch, error });
        }
        let (peer, ops) = (batch.peer, batch.ops.len());
        let id = self.inflight.admit(batch)?;
        let late = self.inflight.deadline(id).is_some_and(|deadline| now >= deadline);
        for index in 0..ops {
            let number = self.ops_posted;
            self.ops_posted += 1;
            if late {
                self.inflight.land((id, index), Err(Error::Expired), now);
            } else {
                let due = now + self.faults.delay;
                self.pending.push(Pending { due, peer, place: (id, index), number });
            }
        }
        Ok(id)
    }

    fn reap(&mut self, now: Instant, events: &mut Vec<Event>) {
        self.find_gone(events);
        self.land_due(now);
        self.inflight.reap(now, events);
    }

    fn close(&mut self, peer: PeerId) {
        self.peers.remove(&peer);
        self.pending.retain(|pending| pending.peer != peer);
        self.inflight.lose_peer(peer);
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.fabric.kill(&self.name);
    }
}

fn flip_bit(window: &RegionSlice) -> Result<(), Error> {
    let first = window.slice(..1)?;
    let mut byte = [0];
    first.copy_to(&mut byte)?;
    first.copy_from(&[byte[0] ^ 1])
}

#[cfg(test)]
mod tests;
