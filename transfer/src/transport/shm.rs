//! Two processes of one host that map the same memfd. The poster's own CPU copies.
//!
//! Regions travel as descriptors over a unix socket, which is the caller's to run (see
//! [`crate::send_with_fds`]); this transport keeps a duplicate of that socket to notice a peer that has
//! gone. Operations are carried out inside [`Transport::post`] and complete at the next reap, so a batch
//! costs its copies there: about 0.1 ms per MiB. [`RemoteRegion::direct`] offers the same memory with
//! no post at all.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Transport;
use crate::caps::{Caps, Limit, MemoryKinds, Reach, TransportKind};
use crate::error::Error;
use crate::inflight::InFlight;
use crate::op::{Batch, BatchId, Event, Op, Refused, SEGMENTS_MAX};
use crate::peer::{PEERS_MAX, PeerAddress, PeerId};
use crate::region::{Access, Export, Region, RegionId};
use crate::remote::RemoteRegion;

/// Operations in flight per peer. They complete as they are posted, so this bounds how much a caller
/// can post without reaping.
pub const INFLIGHT_OPS_MAX: u32 = 1024;

/// The shared-memory transport of one process.
#[derive(Debug)]
pub struct Shm {
    // A peer without a link is gone.
    peers: BTreeMap<PeerId, Option<OwnedFd>>,
    peers_opened: u64,
    inflight: InFlight,
}

impl Shm {
    /// A transport with no peers.
    #[must_use]
    pub fn new() -> Self {
        Self { peers: BTreeMap::new(), peers_opened: 0, inflight: InFlight::new(INFLIGHT_OPS_MAX) }
    }

    fn check_open(&self, peer: PeerId) -> Result<(), Error> {
        let link = self.peers.get(&peer).ok_or(Error::UnknownPeer { peer })?;
        match link {
            Some(link) if !hung_up(&[link])?.contains(&true) => Ok(()),
            Some(_) | None => Err(Error::PeerGone { peer }),
        }
    }

    fn find_gone(&mut self, events: &mut Vec<Event>) {
        let open = self.peers.values().filter_map(Option::as_ref);
        let Ok(gone) = hung_up(&open.collect::<Vec<_>>()) else { return };
        let open = self.peers.iter_mut().filter(|(_, link)| link.is_some());
        for ((&peer, link), _) in open.zip(gone).filter(|(_, gone)| *gone) {
            *link = None;
            self.inflight.lose_peer(peer);
            events.push(Event::PeerGone(peer));
        }
    }
}

impl Default for Shm {
    fn default() -> Self {
        Self::new()
    }
}

impl Transport for Shm {
    fn caps(&self) -> Caps {
        Caps {
            kind: TransportKind::Shm,
            reach: Reach::Host,
            local: MemoryKinds { host: true, host_shared: true, device: false },
            remote: MemoryKinds { host: false, host_shared: true, device: false },
            read: true,
            write: true,
            segments_max: Limit::Max(SEGMENTS_MAX as u64),
            op_bytes_max: Limit::Unlimited,
            inflight_ops_max: INFLIGHT_OPS_MAX,
            digest_fused: true,
            direct: true,
        }
    }

    fn register(&mut self, region: &Region, grant: Access) -> Result<Export, Error> {
        region.export(grant)
    }

    /// Does nothing: a descriptor that was passed cannot be called back.
    fn deregister(&mut self, _region: RegionId) {}

    fn open_peer(&mut self, address: PeerAddress) -> Result<PeerId, Error> {
        let PeerAddress::Link(link) = address else {
            return Err(Error::WrongAddress { expected: "a connected unix socket" });
        };
        if self.peers.len() == PEERS_MAX {
            return Err(Error::TooManyPeers { max: PEERS_MAX });
        }
        let peer = PeerId(self.peers_opened);
        self.peers_opened += 1;
        self.peers.insert(peer, Some(link));
        Ok(peer)
    }

    fn import(&mut self, peer: PeerId, export: Export, access: Access) -> Result<RemoteRegion, Error> {
        self.check_open(peer)?;
        let Export { ticket, fd } = export;
        let fd = fd.ok_or(Error::NotShared { region: ticket.id })?;
        let region = Region::import(&ticket, fd, access)?;
        Ok(RemoteRegion::mapped(peer, ticket, region))
    }

    fn post(&mut self, batch: Batch, now: Instant) -> Result<BatchId, Refused> {
        if let Err(error) = self.check_open(batch.peer) {
            return Err(Refused { batch, error });
        }
        let (ops, deadline) = (batch.ops.len(), batch.deadline);
        let id = self.inflight.admit(batch)?;
        for index in 0..ops {
            let op = self.inflight.op(id, index).expect("an operation just admitted is in flight");
            let result = if now >= deadline { Err(Error::Expired) } else { carry_out(op) };
            self.inflight.land((id, index), result, now);
        }
        Ok(id)
    }

    fn reap(&mut self, now: Instant, events: &mut Vec<Event>) {
        let before = events.len();
        self.inflight.reap(now, events);
        // Looking for dead peers costs a system call, which an owner busy reaping is spared.
        if events.len() == before {
            self.find_gone(events);
        }
    }

    fn close(&mut self, peer: PeerId) {
        self.peers.remove(&peer);
        self.inflight.lose_peer(peer);
    }
}

fn carry_out(op: &Op) -> Result<Vec<u32>, Error> {
    let remote = op.remote().direct().ok_or(Error::UnknownRegion { region: op.remote().region() })?;
    op.copy_with(remote)
}

/// For each socket, whether its other end is closed, even when unread bytes are left.
fn hung_up(links: &[&OwnedFd]) -> Result<Vec<bool>, Error> {
    let mut polled: Vec<PollFd<'_>> = links.iter().map(|link| PollFd::new(link, PollFlags::RDHUP)).collect();
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::io::retry_on_intr(|| poll(&mut polled, Some(&at_once))).map_err(Error::os("poll"))?;
    let closed = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    Ok(polled.iter().map(|fd| fd.revents().intersects(closed)).collect())
}
