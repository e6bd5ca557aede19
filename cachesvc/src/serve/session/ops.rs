//! What a client may ask for after its Hello.
//!
//! A chain is split over shards, each is asked at once, and their answers are put together: what a client gets is always
//! a prefix of what it asked for.

use std::ops::Range;
use std::time::{Duration, Instant};

use hearth_proto::code::Code;
use hearth_proto::key::{BlockKey, unpack};
use hearth_proto::limit::DEADLINE_MS_MAX;
use hearth_proto::v1::{
    self, Done, Durability, Matched, MissReason, Request, SealedBlock, Tier, reply, request,
};
use tokio::sync::oneshot;

use super::{Client, Grants};
use crate::serve::split::split;
use crate::store::message::{Acquired, Answer, Event, GrantId, Leased, Link, Reserved};
use crate::store::runner::{Message, Reply};

/// Answers of several shards, each with the shard's number.
type Gathered = Vec<(usize, Result<Answer, Code>)>;

impl Client {
    /// The reply to a request; none for those that give something back.
    pub(super) async fn answer(&self, request: Request) -> Option<reply::Result> {
        let deadline =
            Instant::now() + Duration::from_millis(request.deadline_ms.min(DEADLINE_MS_MAX).into());
        let result = match request.op {
            Some(request::Op::Match(op)) => self.match_run(&op).await,
            Some(request::Op::Acquire(op)) => self.acquire(&op, deadline).await,
            Some(request::Op::Reserve(op)) => self.reserve(&op).await,
            Some(request::Op::Seal(op)) => self.seal(op).await,
            Some(request::Op::Advertise(op)) => self.advertise(&op),
            Some(request::Op::Withdraw(op)) => self.withdraw(&op),
            Some(request::Op::Release(op)) => {
                self.release(&op);
                return None;
            }
            Some(request::Op::Abort(op)) => {
                self.abort(&op);
                return None;
            }
            Some(request::Op::Hello(_)) => Err(Code::OutOfOrder),
            None => Err(Code::InvalidArgument),
        };
        Some(result.unwrap_or_else(|code| {
            let message = explain(code).to_owned();
            reply::Result::Error(v1::Error { code: code as u32, message, mismatch: None })
        }))
    }

    async fn match_run(&self, op: &v1::Match) -> Result<reply::Result, Code> {
        let chain = chain(&op.keys)?;
        let parts = split(&chain, 0..chain.len(), self.shared.shards.len());
        let caller = || self.caller.clone();
        let answers =
            self.gather(parts, |links, reply| Event::Match { caller: caller(), links, reply }).await;
        let mut found = vec![Tier::Unspecified; chain.len()];
        for (_, answer) in answers {
            if let Answer::Matched(tiers) = answer? {
                tiers.into_iter().for_each(|(index, tier)| found[at(index)] = tier);
            }
        }
        let tiers = found.into_iter().take_while(|&tier| tier != Tier::Unspecified).map(i32::from).collect();
        Ok(reply::Result::Matched(Matched { tiers }))
    }

    async fn acquire(&self, op: &v1::Acquire, deadline: Instant) -> Result<reply::Result, Code> {
        let chain = chain(&op.keys)?;
        let range = range(op.first, op.count, chain.len())?;
        let end = range.end;
        let parts = split(&chain, range, self.shared.shards.len());
        let caller = || self.caller.clone();
        let ask = |links, reply| Event::Acquire { caller: caller(), links, deadline, reply };
        let mut granted = Vec::new();
        let mut failed = None;
        for (shard, answer) in self.gather(parts, ask).await {
            match answer {
                Ok(Answer::Acquired(acquired)) => granted.push((shard, acquired)),
                Ok(_) => failed = Some(Code::Internal),
                Err(code) => failed = Some(code),
            }
        }
        if let Some(code) = failed {
            let all =
                granted.iter().filter_map(|(shard, acquired)| Some((*shard, acquired.lease?))).collect();
            self.release_parts(all, &[]);
            return Err(code);
        }
        Ok(reply::Result::Acquired(self.combine(granted, end)))
    }

    /// Puts leases of shards together up to the first miss; a shard that holds only blocks after it is let go.
    fn combine(&self, granted: Vec<(usize, Acquired)>, end: usize) -> v1::Acquired {
        let first_miss =
            granted.iter().filter_map(|(_, acquired)| acquired.miss).min_by_key(|&(index, _)| index);
        let miss_at = first_miss.map_or(end, |(index, _)| at(index));
        let mut blocks: Vec<(usize, Leased)> = Vec::new();
        let (mut kept, mut spare) = (Vec::new(), Vec::new());
        for (shard, acquired) in granted {
            let before = blocks.len();
            blocks.extend(
                acquired.blocks.iter().filter(|b| at(b.index) < miss_at).map(|&block| (shard, block)),
            );
            let useful = blocks.len() > before;
            if let Some(lease) = acquired.lease {
                if useful { kept.push((shard, lease)) } else { spare.push((shard, lease)) }
            }
        }
        self.release_parts(spare, &[]);
        blocks.sort_unstable_by_key(|(_, block)| block.index);
        let region = |&(shard, _): &(usize, Leased)| self.region_of(shard);
        v1::Acquired {
            lease: if kept.is_empty() { 0 } else { self.grants().add(kept) },
            region: blocks.iter().map(region).collect(),
            offset: blocks.iter().map(|(_, block)| block.offset).collect(),
            generation: blocks.iter().map(|(_, block)| block.generation.0).collect(),
            tier: blocks.iter().map(|(_, block)| block.tier.into()).collect(),
            miss: first_miss.map_or(MissReason::MissNone, |(_, reason)| reason).into(),
        }
    }

    fn release(&self, op: &v1::Release) {
        let corrupt = unpack(&op.corrupt_keys).unwrap_or_default();
        let parts = self.grants().take(op.lease);
        self.release_parts(parts, &corrupt);
    }

    fn release_parts(&self, parts: Vec<(usize, GrantId)>, corrupt: &[BlockKey]) {
        let session = self.caller.session;
        for (shard, lease) in parts {
            let event = Event::Release { session, lease, corrupt: corrupt.to_vec() };
            self.shared.shards[shard].deliver(Message::Event(event));
        }
    }

    async fn reserve(&self, op: &v1::Reserve) -> Result<reply::Result, Code> {
        let chain = chain(&op.keys)?;
        let first = op.first;
        range(first, 0, chain.len())?;
        let mut parts = split(&chain, 0..chain.len(), self.shared.shards.len());
        for part in &mut parts {
            if part.last().is_none_or(|link| link.index < first) {
                part.clear();
            }
        }
        let caller = || self.caller.clone();
        let ask = |links, reply| Event::Reserve { caller: caller(), links, first, reply };
        let mut granted: Vec<(usize, Reserved)> = Vec::new();
        let mut failed = None;
        for (shard, answer) in self.gather(parts, ask).await {
            match answer {
                Ok(Answer::Reserved(reserved)) => granted.push((shard, reserved)),
                Ok(_) => failed = Some(Code::Internal),
                Err(code) => failed = Some(code),
            }
        }
        let parts: Vec<_> =
            granted.iter().filter_map(|(shard, part)| Some((*shard, part.reservation?))).collect();
        if let Some(code) = failed {
            self.abort_parts(parts);
            return Err(code);
        }
        let mut reply = v1::Reserved {
            reservation: if parts.is_empty() { 0 } else { self.grants().add(parts) },
            ..v1::Reserved::default()
        };
        for (shard, part) in granted {
            reply.refused += part.refused;
            for (index, offset, generation) in part.slots {
                reply.index.push(index);
                reply.region.push(self.region_of(shard));
                reply.offset.push(offset);
                reply.generation.push(generation.0);
            }
        }
        Ok(reply::Result::Reserved(reply))
    }

    async fn seal(&self, op: v1::Seal) -> Result<reply::Result, Code> {
        let durability = Durability::try_from(op.durability).map_err(|_| Code::InvalidArgument)?;
        let parts = self.grants().take(op.reservation);
        if parts.is_empty() {
            return Err(Code::Stale);
        }
        let session = self.caller.session;
        let mut waiting = Vec::new();
        for (shard, reservation) in parts {
            // Each shard takes the blocks that it granted and passes over the others.
            let blocks: Vec<SealedBlock> = op.blocks.clone();
            let (reply, answer) = oneshot::channel();
            let event = Event::Seal { session, reservation, blocks, durability, reply };
            self.shared.shards[shard].deliver(Message::Event(event));
            waiting.push(answer);
        }
        let mut result = Ok(reply::Result::Done(Done {}));
        for answer in waiting {
            if let Err(code) = answer.await.unwrap_or(Err(Code::Unavailable)) {
                result = Err(code);
            }
        }
        result
    }

    fn abort(&self, op: &v1::Abort) {
        let parts = self.grants().take(op.reservation);
        self.abort_parts(parts);
    }

    fn abort_parts(&self, parts: Vec<(usize, GrantId)>) {
        let session = self.caller.session;
        for (shard, reservation) in parts {
            self.shared.shards[shard].deliver(Message::Event(Event::Abort { session, reservation }));
        }
    }

    fn advertise(&self, op: &v1::Advertise) -> Result<reply::Result, Code> {
        let chain = chain(&op.keys)?;
        let range = at(op.first)..chain.len();
        if range.start > range.end {
            return Err(Code::InvalidArgument);
        }
        let parts = split(&chain, range, self.shared.shards.len());
        for (shard, links) in parts.into_iter().enumerate().filter(|(_, links)| !links.is_empty()) {
            let event = Event::Advertise { caller: self.caller.clone(), links };
            self.shared.shards[shard].try_send(Message::Event(event))?;
        }
        Ok(reply::Result::Done(Done {}))
    }

    /// The keys do not say where in their runs they stand, so every shard is told.
    fn withdraw(&self, op: &v1::Withdraw) -> Result<reply::Result, Code> {
        let keys = chain(&op.keys)?;
        for shard in &self.shared.shards {
            let event = Event::Withdraw { caller: self.caller.clone(), keys: keys.clone() };
            shard.deliver(Message::Event(event));
        }
        Ok(reply::Result::Done(Done {}))
    }

    /// Asks every shard that has a part, all at once.
    async fn gather(
        &self,
        parts: Vec<Vec<Link>>,
        ask: impl Fn(Vec<Link>, Reply) -> Event<Reply>,
    ) -> Gathered {
        let mut waiting = Vec::new();
        for (shard, links) in parts.into_iter().enumerate().filter(|(_, links)| !links.is_empty()) {
            let (reply, answer) = oneshot::channel();
            let sent = self.shared.shards[shard].try_send(Message::Event(ask(links, reply)));
            waiting.push((shard, sent, answer));
        }
        let mut answers = Vec::with_capacity(waiting.len());
        for (shard, sent, answer) in waiting {
            let answer = match sent {
                Ok(()) => answer.await.unwrap_or(Err(Code::Unavailable)),
                Err(code) => Err(code),
            };
            answers.push((shard, answer));
        }
        answers
    }

    fn grants(&self) -> std::sync::MutexGuard<'_, Grants> {
        self.grants.lock().expect("no code that holds this lock panics")
    }
}

impl Grants {
    fn add(&mut self, parts: Vec<(usize, GrantId)>) -> u64 {
        self.last += 1;
        self.parts.insert(self.last, parts);
        self.last
    }

    fn take(&mut self, grant: u64) -> Vec<(usize, GrantId)> {
        self.parts.remove(&grant).unwrap_or_default()
    }
}

fn chain(packed: &[u8]) -> Result<Vec<BlockKey>, Code> {
    unpack(packed).map_err(|_| Code::InvalidArgument)
}

fn range(first: u32, count: u32, blocks: usize) -> Result<Range<usize>, Code> {
    let end = at(first).checked_add(at(count)).filter(|&end| end <= blocks).ok_or(Code::InvalidArgument)?;
    Ok(at(first)..end)
}

fn at(index: u32) -> usize {
    usize::try_from(index).expect("u32 fits usize")
}

fn explain(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "a field of the request is missing or out of range",
        Code::OutOfOrder => "Hello is the first request of a session, and the only one of its kind",
        Code::Stale => "the reservation is not, or no longer, held by this session; reserve again",
        Code::Unavailable => "the node is overloaded or stopping; try again",
        Code::Io => "the device did not take the blocks; they are in memory only",
        Code::Full => "no room, and nothing that may be evicted",
        _ => "the request could not be done",
    }
}
