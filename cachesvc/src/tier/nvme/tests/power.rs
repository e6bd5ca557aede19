//! Power cuts: the device keeps what was synced and an arbitrary part, by sectors, of the rest. What was acknowledged
//! as durable is found, and nothing that is found is wrong.

use std::collections::BTreeMap;

use super::*;
use crate::io::Caching;
use crate::io::fault::{FaultIo, Plan};
use crate::io::psync::{Psync, PsyncConfig};

const ROUNDS: u64 = 300;
const SLOTS: u32 = 5;
const NUMBERS: u64 = 12;

/// A tier, unless the power goes while it opens.
fn open(dir: &Path, plan: &Plan) -> Option<Rig> {
    let plan = plan.clone();
    let opened = Rig::try_open_on(config(dir), move |config| {
        let (queue_depth, files_max) = (config.queue_depth, config.files_max);
        let psync =
            Psync::new(PsyncConfig { caching: Caching::Buffered, queue_depth, files_max }).expect("threads");
        Ok(Box::new(FaultIo::new(Box::new(psync), plan)))
    });
    match opened {
        Ok(rig) => Some(rig),
        Err(NvmeError::Gone(_)) => None,
        Err(other) => panic!("{other}"),
    }
}

/// What a shard knows of its blocks.
#[derive(Default)]
struct Shard {
    /// The block of a slot, and whether it was acknowledged as durable.
    slots: BTreeMap<Slot, (Block, Ack)>,
    generation: u64,
}

impl Shard {
    /// Takes over what a tier recovered. What is whole then lasts.
    fn recover(&mut self, rig: &Rig) {
        let whole = rig.blocks().into_iter().filter(|(at, block)| rig.read(*at, *block).is_ok());
        self.slots = whole.map(|(at, block)| (at, (block, Ack::Durable))).collect();
        self.generation = rig.recovered.generation_max.0;
    }

    /// Sends a handful of writes and erasures at once and notes the answers until the power goes.
    fn act(&mut self, rig: &Rig, dice: &mut Dice) {
        let count = 1 + dice.roll(6);
        let mut sent = BTreeMap::new();
        for tag in 0..count {
            let at = slot(dice.roll(2) as u32, dice.roll(u64::from(SLOTS)) as u32);
            if sent.values().any(|(other, _)| *other == at) {
                continue;
            }
            // The slot's block is given up before its slot is written, as a shard evicts.
            self.slots.remove(&at);
            let ack = if dice.roll(2) == 0 { Ack::Durable } else { Ack::Written };
            if dice.roll(5) == 0 {
                drop(rig.tier.try_send(Command::Erase { tag: Tag(tag), slot: at, ack }));
                sent.insert(tag, (at, None));
                continue;
            }
            self.generation += 1;
            let block = Block { number: dice.roll(NUMBERS), generation: self.generation };
            let (header, payload) = (block.header(), block.area());
            drop(rig.tier.try_send(Command::Write { tag: Tag(tag), slot: at, header, payload, ack }));
            sent.insert(tag, (at, Some((block, ack))));
        }
        for _ in 0..sent.len() {
            // None when the power is gone.
            let Ok(done) = rig.done.recv() else { return };
            if let Done::Written { tag, result: Ok(()) } = done
                && let (at, Some(written)) = sent[&tag.0]
            {
                self.slots.insert(at, written);
            }
        }
    }

    /// Every number with a durable copy has one, and every copy that is found reads right.
    fn check(&self, rig: &Rig, seed: u64) {
        let mut found = BTreeMap::new();
        for (at, block) in rig.blocks() {
            let read = rig.read(at, block);
            assert!(matches!(read, Ok(()) | Err(ReadError::Corrupt(_))), "seed {seed}: {read:?}");
            assert!(
                found.insert(block.number, read).is_none(),
                "seed {seed}: two copies of {}",
                block.number
            );
        }
        let durable = self.slots.values().filter(|(_, ack)| *ack == Ack::Durable);
        for (block, _) in durable {
            assert_eq!(found.get(&block.number), Some(&Ok(())), "seed {seed}: {block:?} was durable");
        }
    }
}

#[test]
fn what_was_durable_survives_power_cuts() {
    for seed in 0..ROUNDS {
        let mut dice = Dice(seed);
        let dir = quick_folder();
        let mut shard = Shard::default();
        let plan = Plan::default();
        prepare(dir.path());
        for _ in 0..4 {
            while dice.roll(2) == 0 {
                // Strikes at some call of the recovery, or of the shutdown after it.
                plan.cut_power_in(dice.roll(60));
                drop(open(dir.path(), &plan));
                go_down(&plan, &mut dice);
            }
            let rig = open(dir.path(), &plan).expect("opens");
            shard.check(&rig, seed);
            shard.recover(&rig);
            for _ in 0..dice.roll(6) {
                shard.act(&rig, &mut dice);
            }
            plan.cut_power_in(dice.roll(9));
            shard.act(&rig, &mut dice);
            plan.cut_power_in(0);
            drop(rig);
            go_down(&plan, &mut dice);
        }
        shard.check(&open(dir.path(), &plan).expect("opens"), seed);
    }
}

/// The process was killed, or the machine lost its power: then some of what was not synced is gone.
fn go_down(plan: &Plan, dice: &mut Dice) {
    if dice.roll(3) > 0 {
        let lost = 1 + dice.roll(4);
        plan.lose(|| dice.roll(4) < lost);
    }
    plan.restart();
}

fn prepare(dir: &Path) {
    let rig = open(dir, &Plan::default()).expect("opens");
    assert_eq!((rig.create(0), rig.create(1)), (Ok(()), Ok(())));
}

#[test]
fn a_segment_exists_whole_or_not_at_all() {
    for calls in 0..12 {
        let dir = quick_folder();
        prepare(dir.path());
        let plan = Plan::default();
        let rig = open(dir.path(), &plan).expect("opens");
        plan.cut_power_in(calls);
        drop(rig.tier.try_send(Command::CreateSegment { tag: Tag(1), segment: 2, class: class() }));
        let made = rig.done.recv().is_ok();
        plan.cut_power_in(0);
        drop(rig);
        plan.lose(|| true);
        let rig = open(dir.path(), &Plan::default()).expect("opens");
        let slots_empty = rig.recovered.counts.slots_empty;
        let nothing = RecoveryCounts { slots_empty, ..RecoveryCounts::default() };
        assert_eq!(rig.recovered.counts, nothing, "cut at call {calls}");
        assert_eq!(rig.recovered.segments.len(), if made { 3 } else { 2 }, "cut at call {calls}");
        assert_eq!(rig.create(2), Ok(()));
    }
}
