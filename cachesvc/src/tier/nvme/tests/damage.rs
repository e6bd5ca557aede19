//! Bytes that change on the device: every change to a block's header or payload is noticed, a folder with any damage
//! opens, and a segment of another kind is refused with a message that says what to do.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use hearth_proto::header::HEADER_BYTES;
use proptest::prelude::*;

use super::*;
use crate::tier::nvme::format::{SUPERBLOCK_BYTES, file_name};

const SECTOR: usize = 512;

fn psync(dir: &Path) -> NvmeConfig {
    NvmeConfig { io: IoMode::Psync, ..config(dir) }
}

fn path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(file_name(segment))
}

fn raw(dir: &Path, segment: u32) -> File {
    File::options().read(true).write(true).open(path(dir, segment)).expect("a segment")
}

fn offset(slot: Slot) -> u64 {
    format::geometry(SEGMENT_BYTES, 8).offset_in_segment(slot.index, class())
}

fn block(slot: Slot) -> Block {
    let number = u64::from(slot.segment) * 100 + u64::from(slot.index);
    Block { number, generation: number + 1 }
}

/// A folder with `slots` written in two segments.
fn filled(dir: &Path, slots: &[Slot]) {
    let rig = Rig::open(psync(dir));
    for segment in 0..2 {
        assert_eq!(rig.create(segment), Ok(()));
    }
    for &slot in slots {
        assert_eq!(rig.write(slot, block(slot), Ack::Written), Ok(()));
    }
}

fn flip(file: &File, at: u64, mask: u8) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("within the file");
    file.write_all_at(&[byte[0] ^ mask], at).expect("writable");
}

#[test]
fn every_changed_byte_of_a_block_is_noticed() {
    let dir = quick_folder();
    let victim = slot(0, 1);
    filled(dir.path(), &[victim]);
    let rig = Rig::open(psync(dir.path()));
    let file = raw(dir.path(), 0);
    let header = HEADER_BYTES as u64;
    let used =
        (0..header).chain((header..header + PAYLOAD_BYTES).step_by(61)).chain([header + PAYLOAD_BYTES - 1]);
    for at in used {
        let mask = 1 << (at % 8);
        flip(&file, offset(victim) + at, mask);
        assert!(matches!(rig.read(victim, block(victim)), Err(ReadError::Corrupt(_))), "byte {at}");
        flip(&file, offset(victim) + at, mask);
    }
    assert_eq!(rig.read(victim, block(victim)), Ok(()), "all changes were undone");
    for at in header + PAYLOAD_BYTES..class().get() {
        flip(&file, offset(victim) + at, 0xff);
    }
    assert_eq!(rig.read(victim, block(victim)), Ok(()), "padding does not matter");
}

#[test]
fn sectors_and_slots_that_are_swapped_are_noticed() {
    let dir = quick_folder();
    let (here, there) = (slot(0, 0), slot(1, 2));
    filled(dir.path(), &[here, there]);
    let rig = Rig::open(psync(dir.path()));
    let files = [raw(dir.path(), 0), raw(dir.path(), 1)];
    let swap = |at: u64, bytes: usize| {
        let (mut one, mut other) = (vec![0; bytes], vec![0; bytes]);
        files[0].read_exact_at(&mut one, offset(here) + at).expect("within");
        files[1].read_exact_at(&mut other, offset(there) + at).expect("within");
        files[0].write_all_at(&other, offset(here) + at).expect("writable");
        files[1].write_all_at(&one, offset(there) + at).expect("writable");
    };
    let sectors_end = HEADER_BYTES as u64 + PAYLOAD_BYTES;
    for at in (0..sectors_end).step_by(SECTOR) {
        // Sectors of zeros at the end of both headers are the same.
        let same = at >= SECTOR as u64 && at + (SECTOR as u64) <= HEADER_BYTES as u64;
        swap(at, SECTOR);
        for victim in [here, there] {
            let read = rig.read(victim, block(victim));
            if same {
                assert_eq!(read, Ok(()), "sector at {at}");
            } else {
                assert!(matches!(read, Err(ReadError::Corrupt(_))), "sector at {at}");
            }
        }
        swap(at, SECTOR);
    }
    swap(0, class().get() as usize);
    let astray = rig.read(here, block(there));
    assert_eq!(astray, Err(ReadError::Corrupt(Damage::Misplaced)), "whole, but of another place");
    assert_eq!(rig.read(here, block(here)), Err(ReadError::Corrupt(Damage::Misplaced)));
    drop(rig);
    let rig = Rig::open(psync(dir.path()));
    assert_eq!(rig.blocks(), []);
    assert_eq!(rig.recovered.counts.headers_misplaced, 2);
}

#[test]
fn one_damaged_superblock_is_repaired_and_two_set_the_segment_aside() {
    let dir = quick_folder();
    let (here, there) = (slot(0, 0), slot(1, 0));
    filled(dir.path(), &[here, there]);
    let tail = SEGMENT_BYTES - SUPERBLOCK_BYTES as u64;
    for at in [0, 8, 12, 40, 4000, tail, tail + 50] {
        flip(&raw(dir.path(), 0), at, 1);
        let rig = Rig::open(psync(dir.path()));
        assert_eq!(rig.recovered.counts.segments_repaired, 1, "byte {at}");
        assert_eq!(rig.blocks(), [(here, block(here)), (there, block(there))]);
        drop(rig);
        assert_eq!(
            Rig::open(psync(dir.path())).recovered.counts.segments_repaired,
            0,
            "repaired on the device too"
        );
    }
    for (round, name) in ["seg-00000000.hearth.bad", "seg-00000000.hearth.bad1"].into_iter().enumerate() {
        for at in [1, tail + 1] {
            flip(&raw(dir.path(), 0), at, 1);
        }
        let before = std::fs::read(path(dir.path(), 0)).expect("a segment");
        let rig = Rig::open(psync(dir.path()));
        assert_eq!(rig.recovered.counts.segments_set_aside, 1);
        assert_eq!(rig.recovered.segments_usable, 7 - round as u32, "what is set aside takes up space");
        assert_eq!(rig.blocks(), [(there, block(there))]);
        assert!(std::fs::read(dir.path().join(name)).expect("kept") == before);
        assert_eq!(rig.create(0), Ok(()), "its number is free");
    }
    assert_eq!(Rig::open(psync(dir.path())).recovered.segments_usable, 6);
}

#[test]
fn a_segment_that_is_cut_short_loses_what_was_cut() {
    let dir = quick_folder();
    let kept = slot(0, 0);
    let cut = slot(0, 9);
    filled(dir.path(), &[kept, cut]);
    raw(dir.path(), 0).set_len(offset(slot(0, 5)) + 100).expect("cut");
    raw(dir.path(), 1).set_len(0).expect("cut");
    let rig = Rig::open(psync(dir.path()));
    let counts = rig.recovered.counts;
    assert_eq!(
        (counts.segments_truncated, counts.segments_set_aside),
        (1, 1),
        "an empty file has no superblock"
    );
    assert_eq!(rig.blocks(), [(kept, block(kept))]);
    assert_eq!(rig.read(kept, block(kept)), Ok(()));
    assert_eq!(rig.write(cut, block(cut), Ack::Durable), Ok(()), "made whole again");
}

#[test]
fn segments_of_another_kind_are_refused_and_left_alone() {
    let dir = quick_folder();
    filled(dir.path(), &[slot(0, 0)]);
    let image = std::fs::read(path(dir.path(), 0)).expect("a segment");
    let with = |at: usize, value: &[u8]| {
        let mut bytes = image.clone();
        for base in [0, bytes.len() - SUPERBLOCK_BYTES] {
            bytes[base + at..base + at + value.len()].copy_from_slice(value);
            let crc = crc32fast::hash(&bytes[base + 12..base + SUPERBLOCK_BYTES]);
            bytes[base + 8..base + 12].copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    };
    let refused = |config: NvmeConfig| Rig::try_open(config).err().expect("refused");
    let check = |bytes: Vec<u8>, says: &[&str], is: fn(&NvmeError) -> bool| {
        std::fs::write(path(dir.path(), 0), &bytes).expect("writable");
        let error = refused(psync(dir.path()));
        assert!(is(&error), "{error:?}");
        for part in says.iter().chain(&["seg-00000000.hearth"]) {
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(std::fs::read(path(dir.path(), 0)).expect("still there") == bytes, "left as it was");
    };
    check(with(12, &9u32.to_le_bytes()), &["format 9", "format 1"], |e| {
        matches!(e, NvmeError::Version { found: 9, .. })
    });
    check(with(16, &[1; 16]), &["0101", "5a5a"], |e| matches!(e, NvmeError::Foreign { .. }));
    check(with(32, &4u32.to_le_bytes()), &["shard 4"], |e| matches!(e, NvmeError::Misnamed { .. }));
    check(with(36, &6u32.to_le_bytes()), &["segment 6"], |e| matches!(e, NvmeError::Misnamed { .. }));
    std::fs::write(path(dir.path(), 0), &image).expect("writable");
    let other_size = NvmeConfig { segment_bytes: 2 * SEGMENT_BYTES, ..psync(dir.path()) };
    assert!(matches!(refused(other_size), NvmeError::SegmentBytes { .. }));
    assert_eq!(Rig::open(psync(dir.path())).blocks().len(), 1, "as before");
}

#[test]
fn a_smaller_budget_drops_the_segments_beyond_it() {
    let dir = quick_folder();
    let kept = slot(0, 0);
    filled(dir.path(), &[kept, slot(1, 0)]);
    let rig = Rig::open(NvmeConfig { bytes_max: SEGMENT_BYTES, ..psync(dir.path()) });
    assert_eq!(rig.recovered.counts.segments_over_budget, 1);
    assert_eq!(rig.blocks(), [(kept, block(kept))]);
    assert!(!path(dir.path(), 1).exists());
}

#[test]
fn of_two_copies_the_newest_that_is_whole_wins() {
    let dir = quick_folder();
    let copy = |generation| Block { number: 5, generation };
    let rig = Rig::open(psync(dir.path()));
    for segment in 0..3 {
        assert_eq!(rig.create(segment), Ok(()));
        assert_eq!(rig.write(slot(segment, 1), copy(10 + u64::from(segment)), Ack::Durable), Ok(()));
    }
    drop(rig);
    flip(&raw(dir.path(), 2), offset(slot(2, 1)) + HEADER_BYTES as u64, 1);
    let rig = Rig::open(psync(dir.path()));
    assert_eq!(rig.blocks(), [(slot(1, 1), copy(11))], "the newest is torn");
    assert_eq!(rig.recovered.counts.headers_superseded, 2);
    assert_eq!(rig.recovered.generation_max, Generation(12), "counts all the same");
    assert_eq!(rig.read(slot(1, 1), copy(11)), Ok(()));
    drop(rig);
    assert_eq!(Rig::open(psync(dir.path())).recovered.counts.headers_superseded, 0, "erased");
}

#[test]
fn what_crashes_leave_behind_is_removed() {
    let dir = quick_folder();
    filled(dir.path(), &[slot(0, 0)]);
    for name in ["seg-00000004.hearth.new", "probe-1-2.tmp"] {
        std::fs::write(dir.path().join(name), [1; 5000]).expect("writable");
    }
    std::fs::write(dir.path().join("notes.txt"), "of a person").expect("writable");
    drop(Rig::open(psync(dir.path())));
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path()).expect("a folder").flatten().map(|e| e.file_name()).collect();
    names.sort();
    assert_eq!(names, ["notes.txt", "seg-00000000.hearth", "seg-00000001.hearth"]);
}

/// A change to the image of a segment.
#[derive(Clone, Debug)]
enum Change {
    Byte { at: u64, mask: u8 },
    Sector { at: u64, with: u8 },
    Copy { from: u64, to: u64 },
    Cut { at: u64 },
}

fn change() -> impl Strategy<Value = Change> {
    let at = || prop_oneof![0..SEGMENT_BYTES, 0..4096u64, 4096..4500u64, SEGMENT_BYTES - 4096..SEGMENT_BYTES];
    prop_oneof![
        6 => (at(), 1..=255u8).prop_map(|(at, mask)| Change::Byte { at, mask }),
        2 => (at(), any::<u8>()).prop_map(|(at, with)| Change::Sector { at, with }),
        2 => (at(), at()).prop_map(|(from, to)| Change::Copy { from, to }),
        1 => at().prop_map(|at| Change::Cut { at }),
    ]
}

fn damage(image: &mut Vec<u8>, change: &Change) {
    let sector = |at: u64, len: usize| (at as usize / SECTOR * SECTOR).min(len.saturating_sub(SECTOR));
    let len = image.len();
    match *change {
        Change::Byte { at, mask } if (at as usize) < len => image[at as usize] ^= mask,
        Change::Sector { at, with } if len >= SECTOR => image[sector(at, len)..][..SECTOR].fill(with),
        Change::Copy { from, to } if len >= SECTOR => {
            let from = sector(from, len);
            image.copy_within(from..from + SECTOR, sector(to, len));
        }
        Change::Cut { at } => image.truncate(at as usize),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn any_damage_opens_and_nothing_wrong_is_read(changes in prop::collection::vec(change(), 1..20)) {
        let dir = quick_folder();
        let slots: Vec<_> = (0..12).map(|index| slot(0, index)).collect();
        filled(dir.path(), &slots);
        let mut image = std::fs::read(path(dir.path(), 0)).expect("a segment");
        for change in &changes {
            damage(&mut image, change);
        }
        std::fs::write(path(dir.path(), 0), &image).expect("writable");
        let rig = Rig::open(psync(dir.path()));
        for (at, found) in rig.blocks() {
            prop_assert_eq!(found, block(at), "a block that was never written there");
            prop_assert!(matches!(rig.read(at, found), Ok(()) | Err(ReadError::Corrupt(_))));
        }
    }
}
