//! The tier as a shard sees it: what it stores it finds, also after a restart, and nothing it returns is wrong.

use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};

use hearth_proto::header::{BlockHeader, Location};
use hearth_proto::identity::Fingerprint;
use hearth_proto::key::BlockKey;
use hearth_proto::tenant::TenantId;
use hearth_transfer::{Region, RegionSlice};
use tempfile::TempDir;

use super::*;

mod basics;
mod crash;
mod damage;
mod faults;
mod power;

const STORE: StoreId = StoreId([0x5a; 16]);
const PAYLOAD_BYTES: u64 = 3 * 4096 + 100;
const RANGE_BYTES: u32 = 5000;
const SEGMENT_BYTES: u64 = 256 * 1024;

fn config(dir: &Path) -> NvmeConfig {
    NvmeConfig {
        dir: dir.to_owned(),
        shard: 3,
        store_id: STORE,
        bytes_max: 8 * SEGMENT_BYTES,
        segment_bytes: SEGMENT_BYTES,
        io: IoMode::Auto,
        queue_depth: 8,
    }
}

fn class() -> SlotBytes {
    SlotBytes::for_payload(PAYLOAD_BYTES)
}

/// A block whose every byte follows from its number and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    number: u64,
    generation: u64,
}

impl Block {
    fn payload(self) -> Vec<u8> {
        let seed = self.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.generation.rotate_left(40);
        let words = (0..PAYLOAD_BYTES.div_ceil(8)).map(|i| (seed ^ i).wrapping_mul(0xd6e8_feb8_6659_fd93));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(PAYLOAD_BYTES as usize);
        bytes
    }

    fn header(self) -> BlockHeader {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.number.to_le_bytes());
        BlockHeader {
            key: BlockKey(key),
            fingerprint: Fingerprint([2; 32]),
            tenant: TenantId([3; 16]),
            parent: (self.number > 0).then_some(BlockKey([4; 32])),
            depth: u32::from(self.number > 0),
            generation: Generation(self.generation),
            location: Location::MEMORY,
            payload_bytes: PAYLOAD_BYTES,
            range_bytes: RANGE_BYTES,
            range_crcs: self.payload().chunks(RANGE_BYTES as usize).map(crc32fast::hash).collect(),
        }
    }

    fn name(self) -> BlockName {
        BlockName::from(&self.header())
    }

    fn of(name: &BlockName) -> Self {
        let number = u64::from_le_bytes(name.key.0[..8].try_into().expect("eight bytes"));
        Self { number, generation: name.generation.0 }
    }

    /// The payload area of a slot, filled.
    fn area(self) -> RegionSlice {
        let area = blank();
        let bytes = area.slice(..PAYLOAD_BYTES as usize).expect("within");
        bytes.copy_from(&self.payload()).expect("of one length");
        area
    }
}

fn blank() -> RegionSlice {
    Region::heap(class().payload_area() as usize).expect("memory").whole()
}

fn slot(segment: u32, index: u32) -> Slot {
    Slot { segment, index }
}

/// A tier and what it answers.
struct Rig {
    tier: NvmeTier,
    done: Receiver<Done>,
    recovered: Recovered,
}

impl Rig {
    fn open(config: NvmeConfig) -> Self {
        Self::try_open(config).expect("opens")
    }

    fn try_open(config: NvmeConfig) -> Result<Self, NvmeError> {
        Self::try_open_on(config, io::open)
    }

    fn try_open_on<F>(config: NvmeConfig, open_io: F) -> Result<Self, NvmeError>
    where
        F: FnOnce(&IoConfig) -> Result<Box<dyn BlockIo>, IoOpenError> + Send + 'static,
    {
        let (answers, done) = sync_channel(COMMANDS_MAX);
        let sink = Box::new(move |done| drop(answers.send(done)));
        let (tier, recovered) = NvmeTier::open_on(config, sink, open_io)?;
        Ok(Self { tier, done, recovered })
    }

    fn send(&self, command: Command) {
        self.tier.try_send(command).expect("room");
    }

    fn answer(&self) -> Done {
        self.done.recv().expect("one answer per command")
    }

    fn create(&self, segment: u32) -> Result<(), SegmentError> {
        self.send(Command::CreateSegment { tag: Tag(1), segment, class: class() });
        match self.answer() {
            Done::SegmentCreated { result, .. } => result,
            other => panic!("{other:?}"),
        }
    }

    fn delete(&self, segment: u32) -> Result<(), SegmentError> {
        self.send(Command::DeleteSegment { tag: Tag(2), segment });
        match self.answer() {
            Done::SegmentDeleted { result, .. } => result,
            other => panic!("{other:?}"),
        }
    }

    fn write(&self, slot: Slot, block: Block, ack: Ack) -> Result<(), WriteError> {
        let (header, payload) = (block.header(), block.area());
        self.send(Command::Write { tag: Tag(3), slot, header, payload, ack });
        match self.answer() {
            Done::Written { tag: Tag(3), result } => result,
            other => panic!("{other:?}"),
        }
    }

    /// Reads, and checks that what is called a hit is the block, byte for byte.
    fn read(&self, slot: Slot, block: Block) -> Result<(), ReadError> {
        let payload = blank();
        self.send(Command::Read { tag: Tag(4), slot, expect: block.name(), payload: payload.clone() });
        match self.answer() {
            Done::Read { result, .. } => {
                let header = result?;
                assert_eq!(*header, BlockHeader { location: format::location(slot), ..block.header() });
                assert_eq!(payload.to_vec()[..PAYLOAD_BYTES as usize], block.payload(), "wrong bytes");
                Ok(())
            }
            other => panic!("{other:?}"),
        }
    }

    fn erase(&self, slot: Slot) -> Result<(), WriteError> {
        self.send(Command::Erase { tag: Tag(5), slot, ack: Ack::Durable });
        match self.answer() {
            Done::Erased { result, .. } => result,
            other => panic!("{other:?}"),
        }
    }

    /// The blocks that were recovered, by slot.
    fn blocks(&self) -> Vec<(Slot, Block)> {
        let mut blocks: Vec<_> =
            self.recovered.blocks.iter().map(|found| (found.slot, Block::of(&found.name))).collect();
        blocks.sort_unstable_by_key(|(slot, _)| *slot);
        blocks
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// A folder in memory, where the machine has one: for tests that open a tier many times.
fn quick_folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| folder())
}

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    /// Below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}
