//! Blocks, kept as runs: stretches of a chain that came one after the other.
//!
//! A key names everything before it, so two chains that share a key share all keys up to it. Comparing a prompt with
//! a run therefore takes one lookup in a table, for the run's first block, and a search for the last block that agrees. Who holds what of a run is kept as spans, since those who hold a block nearly always hold its neighbours.
//!
//! Of a key only the first eight bytes are kept: keys are uniform and made with the tenant's secret, so among 10⁸
//! blocks two share them with a probability of 1 in 3,000, and then one prompt is routed worse than it could be.

use hashbrown::HashTable;
use hearth_proto::key::BlockKey;

use super::places::{PlaceId, PlaceSet};

/// Blocks of one run. Longer chains are several runs.
const RUN_BLOCKS_MAX: usize = 1 << RUN_BITS;
const RUN_BITS: u32 = 8;
/// Runs of one index: what the rest of a 32-bit number can name.
const RUNS_MAX: usize = 1 << (u32::BITS - RUN_BITS);

/// Where a block is: which run, and which of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At(u32);

/// All runs, and the table that finds a block in them.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    list: Vec<Run>,
    free: Vec<u32>,
    table: HashTable<At>,
}

/// A stretch of a chain.
#[derive(Debug, Default)]
struct Run {
    shard: u32,
    /// First eight bytes of each key.
    keys: Vec<u64>,
    /// Ends grow, the last is the number of keys, and neighbours differ.
    spans: Vec<Span>,
}

/// Blocks of a run that the same places hold. Where that is nobody, the blocks are gone from the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    end: u16,
    places: PlaceSet,
}

/// There is no room for another run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Runs {
    /// Where the block with this key is, if anyone holds it.
    pub(crate) fn find(&self, key: u64) -> Option<At> {
        self.table.find(key, |&at| self.key(at) == key).copied()
    }

    /// The shard that told of this block.
    pub(crate) fn shard(&self, at: At) -> u32 {
        self.list[at.run()].shard
    }

    /// Blocks that anyone holds.
    pub(crate) fn blocks(&self) -> usize {
        self.table.len()
    }

    /// How many blocks from `at` on agree with `keys`, compared one by one, and are held by somebody.
    pub(crate) fn agreeing(&self, at: At, keys: &[BlockKey]) -> usize {
        let same = |(ours, theirs): &(&u64, &BlockKey)| **ours == theirs.prefix();
        let equal = self.list[at.run()].keys[at.offset()..].iter().zip(keys).take_while(same).count();
        self.pieces(at, equal).map(|(blocks, _)| blocks).sum()
    }

    /// How many blocks from `at` on agree with `keys`, which is a chain and agrees with the first one.
    ///
    /// A key names all before it, so where a run and a chain agree they agree from there back: a few keys are compared,
    /// not all. Should a store announce as a run what is none, the answer is too long; its word is all there is anyway.
    pub(crate) fn agreeing_chain(&self, at: At, keys: &[BlockKey]) -> usize {
        let ours = &self.list[at.run()].keys[at.offset()..];
        let ours = &ours[..ours.len().min(keys.len())];
        let agrees = |position: usize| ours[position] == keys[position].prefix();
        if ours.len().checked_sub(1).is_some_and(agrees) {
            return ours.len();
        }
        let (mut agreed, mut differs) = (0, ours.len());
        while agreed < differs {
            let middle = agreed.midpoint(differs);
            if agrees(middle) { agreed = middle + 1 } else { differs = middle }
        }
        agreed
    }

    /// The `blocks` from `at` on as pieces: how many, and who holds them. Ends before a block that nobody holds.
    pub(crate) fn pieces(&self, at: At, blocks: usize) -> impl Iterator<Item = (usize, &PlaceSet)> {
        let run = &self.list[at.run()];
        let end = at.offset() + blocks;
        let first = run.spans.partition_point(|span| usize::from(span.end) <= at.offset());
        let mut from = at.offset();
        run.spans[first..]
            .iter()
            .take_while(|span| !span.places.is_empty())
            .map(move |span| {
                let to = usize::from(span.end).min(end);
                let blocks = to.saturating_sub(from);
                from = to;
                (blocks, &span.places)
            })
            .take_while(|(blocks, _)| *blocks > 0)
    }

    /// A new block, held by `place`, that follows the block at `parent`.
    pub(crate) fn push(
        &mut self,
        key: u64,
        parent: Option<At>,
        shard: u32,
        place: PlaceId,
    ) -> Result<At, Full> {
        let run = match parent.filter(|parent| self.list[parent.run()].grows_after(*parent, shard)) {
            Some(parent) => parent.run(),
            None => self.new_run(shard)?,
        };
        let at = At::new(run, self.list[run].keys.len());
        self.list[run].push(key, place);
        let list = &self.list;
        self.table.insert_unique(key, at, |&at| list[at.run()].keys[at.offset()]);
        Ok(at)
    }

    /// `place` holds these `blocks` from `at` on. Calls `new` with the position of each that it did not hold before.
    pub(crate) fn hold(&mut self, at: At, blocks: usize, place: PlaceId, new: impl FnMut(usize)) {
        let run = &mut self.list[at.run()];
        run.edit(
            at.offset()..at.offset() + blocks,
            |set| (!set.contains(place)).then(|| set.with(place)),
            new,
        );
    }

    /// `place` holds these `blocks` from `at` on no longer. Calls `gone` with the position of each that it held.
    pub(crate) fn release(&mut self, at: At, blocks: usize, place: PlaceId, gone: impl FnMut(usize)) {
        let index = at.run();
        let range = at.offset()..at.offset() + blocks;
        let run = &mut self.list[index];
        run.edit(range.clone(), |set| set.contains(place).then(|| set.without(place)), gone);
        for offset in range {
            if self.list[index].places(offset).is_empty() {
                self.unlist(At::new(index, offset));
            }
        }
        let run = &mut self.list[index];
        run.trim();
        if run.keys.is_empty() {
            self.drop_run(index);
        }
    }

    /// Drops all that `shard` told of. Calls `gone` with each piece: how many blocks, and who held them.
    pub(crate) fn forget(&mut self, shard: u32, mut gone: impl FnMut(usize, &PlaceSet)) {
        let list = &self.list;
        self.table.retain(|at| list[at.run()].shard != shard);
        for index in 0..self.list.len() {
            let run = &self.list[index];
            if run.shard != shard || run.keys.is_empty() {
                continue;
            }
            let mut from = 0;
            for span in &run.spans {
                gone(usize::from(span.end) - from, &span.places);
                from = usize::from(span.end);
            }
            self.drop_run(index);
        }
    }

    /// Bytes taken, to within the allocator's overhead. Walks over all runs.
    pub(crate) fn bytes(&self) -> usize {
        let run_bytes = |run: &Run| {
            run.keys.capacity() * size_of::<u64>()
                + run.spans.capacity() * size_of::<Span>()
                + run.spans.iter().map(|span| span.places.heap_bytes()).sum::<usize>()
        };
        self.table.allocation_size()
            + self.list.capacity() * size_of::<Run>()
            + self.free.capacity() * size_of::<u32>()
            + self.list.iter().map(run_bytes).sum::<usize>()
    }

    fn key(&self, at: At) -> u64 {
        self.list[at.run()].keys[at.offset()]
    }

    fn new_run(&mut self, shard: u32) -> Result<usize, Full> {
        let run = Run { shard, ..Run::default() };
        if let Some(index) = self.free.pop() {
            let index = usize::try_from(index).expect("was made from a usize");
            self.list[index] = run;
            return Ok(index);
        }
        if self.list.len() == RUNS_MAX {
            return Err(Full);
        }
        self.list.push(run);
        Ok(self.list.len() - 1)
    }

    fn drop_run(&mut self, index: usize) {
        self.list[index] = Run::default();
        self.free.push(u32::try_from(index).expect("RUNS_MAX fits 32 bits"));
    }

    /// Takes a block that nobody holds out of the table. It may be out already.
    fn unlist(&mut self, at: At) {
        let key = self.key(at);
        if let Ok(entry) = self.table.find_entry(key, |&other| other == at) {
            entry.remove();
        }
    }
}

impl Run {
    /// Whether the next block of the chain goes to the end of this run.
    fn grows_after(&self, parent: At, shard: u32) -> bool {
        self.shard == shard && parent.offset() + 1 == self.keys.len() && self.keys.len() < RUN_BLOCKS_MAX
    }

    fn push(&mut self, key: u64, place: PlaceId) {
        self.keys.push(key);
        let end = u16::try_from(self.keys.len()).expect("RUN_BLOCKS_MAX fits 16 bits");
        let places = PlaceSet::default().with(place);
        match self.spans.last_mut() {
            Some(last) if last.places == places => last.end = end,
            _ => self.spans.push(Span { end, places }),
        }
    }

    /// Who holds the block at `offset`.
    fn places(&self, offset: usize) -> &PlaceSet {
        let index = self.spans.partition_point(|span| usize::from(span.end) <= offset);
        &self.spans[index].places
    }

    /// Replaces the set of each block in `range` for which `change` gives another one; calls `changed` with the
    /// block's position within the range.
    fn edit(
        &mut self,
        range: std::ops::Range<usize>,
        change: impl Fn(&PlaceSet) -> Option<PlaceSet>,
        mut changed: impl FnMut(usize),
    ) {
        let mut spans: Vec<Span> = Vec::with_capacity(self.spans.len() + 2);
        let mut put = |end: usize, places: PlaceSet| {
            let end = u16::try_from(end).expect("RUN_BLOCKS_MAX fits 16 bits");
            match spans.last_mut() {
                Some(last) if last.end >= end => {}
                Some(last) if last.places == places => last.end = end,
                _ if end == 0 => {}
                _ => spans.push(Span { end, places }),
            }
        };
        let mut from = 0;
        for span in &self.spans {
            let to = usize::from(span.end);
            let inside = range.start.clamp(from, to)..range.end.clamp(from, to);
            match change(&span.places).filter(|_| !inside.is_empty()) {
                None => put(to, span.places.clone()),
                Some(places) => {
                    put(inside.start, span.places.clone());
                    put(inside.end, places);
                    put(to, span.places.clone());
                    inside.for_each(|offset| changed(offset - range.start));
                }
            }
            from = to;
        }
        self.spans = spans;
    }

    /// Cuts off what nobody holds at the end.
    fn trim(&mut self) {
        while let Some(span) = self.spans.pop_if(|span| span.places.is_empty()) {
            let from = self.spans.last().map_or(0, |before| usize::from(before.end));
            debug_assert!(from < usize::from(span.end), "a span is never empty");
            self.keys.truncate(from);
        }
    }
}

impl At {
    /// The block `blocks` further in the same run.
    pub(crate) fn plus(self, blocks: usize) -> Self {
        Self::new(self.run(), self.offset() + blocks)
    }

    fn new(run: usize, offset: usize) -> Self {
        debug_assert!(run < RUNS_MAX && offset < RUN_BLOCKS_MAX);
        Self(
            u32::try_from(run << RUN_BITS | offset)
                .expect("RUNS_MAX runs of RUN_BLOCKS_MAX blocks fit 32 bits"),
        )
    }

    fn run(self) -> usize {
        usize::try_from(self.0 >> RUN_BITS).expect("32 bits fit a usize")
    }

    fn offset(self) -> usize {
        usize::try_from(self.0).expect("32 bits fit a usize") & (RUN_BLOCKS_MAX - 1)
    }
}
