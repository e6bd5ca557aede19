//! Batches between post and completion: how many, until when, and whose buffers they are. The only
//! place that says "later". No I/O and no clock, so that every transport shares it.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use crate::error::Error;
use crate::op::{Batch, BatchId, Completion, Event, Op, OpDone, Refused};
use crate::peer::PeerId;

/// What is in flight over one transport.
#[derive(Debug)]
pub(crate) struct InFlight {
    ops_max: u32,
    next: u64,
    posted: BTreeMap<BatchId, Posted>,
    ops_of: HashMap<PeerId, u32>,
}

#[derive(Debug)]
struct Posted {
    peer: PeerId,
    tag: u64,
    deadline: Instant,
    told_expired: bool,
    missing: usize,
    ops: Vec<Moving>,
}

#[derive(Debug)]
struct Moving {
    op: Op,
    // None until the operation comes to rest.
    result: Option<Result<Vec<u32>, Error>>,
}

impl InFlight {
    /// Takes at most `ops_max` operations per peer.
    pub(crate) fn new(ops_max: u32) -> Self {
        assert!(ops_max > 0, "a transport that takes no operation moves no bytes");
        Self { ops_max, next: 0, posted: BTreeMap::new(), ops_of: HashMap::new() }
    }

    /// Takes a batch in, or gives it back.
    pub(crate) fn admit(&mut self, batch: Batch) -> Result<BatchId, Refused> {
        let taken = self.ops_of.get(&batch.peer).copied().unwrap_or(0);
        if let Err(error) = self.check(&batch, taken) {
            return Err(Refused { batch, error });
        }
        let Batch { peer, ops, deadline, tag } = batch;
        self.ops_of.insert(peer, taken + ops.len() as u32);
        let id = BatchId(self.next);
        self.next += 1;
        let missing = ops.len();
        let ops = ops.into_iter().map(|op| Moving { op, result: None }).collect();
        self.posted.insert(id, Posted { peer, tag, deadline, told_expired: false, missing, ops });
        Ok(id)
    }

    fn check(&self, batch: &Batch, taken: u32) -> Result<(), Error> {
        let ops = batch.ops.len();
        if ops == 0 {
            return Err(Error::EmptyBatch);
        }
        if ops > self.ops_max as usize {
            return Err(Error::BatchTooLarge { ops, max: self.ops_max });
        }
        if batch.ops.iter().any(|op| op.remote().peer() != batch.peer) {
            return Err(Error::UnknownPeer { peer: batch.peer });
        }
        if taken as usize + ops > self.ops_max as usize {
            return Err(Error::Busy { max: self.ops_max });
        }
        Ok(())
    }

    /// An operation that has not come to rest.
    pub(crate) fn op(&self, batch: BatchId, index: usize) -> Option<&Op> {
        let moving = self.posted.get(&batch)?.ops.get(index)?;
        moving.result.is_none().then_some(&moving.op)
    }

    /// When the batch's caller stops waiting.
    pub(crate) fn deadline(&self, batch: BatchId) -> Option<Instant> {
        self.posted.get(&batch).map(|posted| posted.deadline)
    }

    /// Records that an operation came to rest at `at`. Past the deadline its outcome no longer counts.
    pub(crate) fn land(
        &mut self,
        (batch, index): (BatchId, usize),
        result: Result<Vec<u32>, Error>,
        at: Instant,
    ) {
        let Some(posted) = self.posted.get_mut(&batch) else { return };
        let late = at >= posted.deadline && result.is_ok();
        let Some(Moving { result: at_rest @ None, .. }) = posted.ops.get_mut(index) else { return };
        *at_rest = Some(if late { Err(Error::Expired) } else { result });
        posted.missing -= 1;
    }

    /// Brings everything posted to `peer` to rest. The caller has made sure that no device still
    /// touches the buffers.
    pub(crate) fn lose_peer(&mut self, peer: PeerId) {
        for posted in self.posted.values_mut().filter(|posted| posted.peer == peer) {
            for moving in posted.ops.iter_mut().filter(|moving| moving.result.is_none()) {
                moving.result = Some(Err(Error::PeerGone { peer }));
            }
            posted.missing = 0;
        }
    }

    /// Reports, in order of posting, what has come to rest and what has expired by `now`.
    pub(crate) fn reap(&mut self, now: Instant, events: &mut Vec<Event>) {
        for (&batch, posted) in &mut self.posted {
            if posted.missing > 0 && now >= posted.deadline && !posted.told_expired {
                posted.told_expired = true;
                events.push(Event::Expired { batch, tag: posted.tag });
            }
        }
        let at_rest = self.posted.iter().filter(|(_, posted)| posted.missing == 0);
        for batch in at_rest.map(|(&batch, _)| batch).collect::<Vec<_>>() {
            let posted = self.posted.remove(&batch).expect("it was just found");
            self.give_back(posted.peer, posted.ops.len() as u32);
            events.push(Event::Completed(posted.complete(batch)));
        }
    }

    fn give_back(&mut self, peer: PeerId, ops: u32) {
        let taken = self.ops_of.get_mut(&peer).expect("a posted batch holds credit");
        *taken = taken.checked_sub(ops).expect("credit is given back once");
        if *taken == 0 {
            self.ops_of.remove(&peer);
        }
    }
}

impl Posted {
    fn complete(self, batch: BatchId) -> Completion {
        let rest = |Moving { op, result }| OpDone {
            op,
            result: result.expect("a batch completes when each operation has"),
        };
        Completion { batch, tag: self.tag, peer: self.peer, ops: self.ops.into_iter().map(rest).collect() }
    }
}
