//! Storing, finding, erasing, and the refusals of commands that cannot be right.

use super::*;

const ONE: Block = Block { number: 1, generation: 10 };
const TWO: Block = Block { number: 2, generation: 11 };

#[test]
fn blocks_are_found_again_also_after_a_restart() {
    for io in [IoMode::Uring, IoMode::Psync] {
        let dir = folder();
        let config = NvmeConfig { io, ..config(dir.path()) };
        let rig = Rig::open(config.clone());
        assert_eq!(rig.recovered.slots.segments_max, 8);
        assert!(rig.blocks().is_empty() && rig.recovered.segments.is_empty());
        assert_eq!(rig.create(0), Ok(()));
        assert_eq!(rig.create(7), Ok(()));
        assert_eq!(rig.write(slot(0, 0), ONE, Ack::Written), Ok(()));
        assert_eq!(rig.write(slot(7, 5), TWO, Ack::Durable), Ok(()));
        assert_eq!(rig.read(slot(0, 0), ONE), Ok(()));
        assert_eq!(rig.read(slot(7, 5), TWO), Ok(()));
        drop(rig);

        let rig = Rig::open(config);
        assert_eq!(rig.blocks(), [(slot(0, 0), ONE), (slot(7, 5), TWO)]);
        assert_eq!(rig.recovered.generation_max, Generation(11));
        let segment = |segment| RecoveredSegment { segment, class: class(), writable: true };
        assert_eq!(rig.recovered.segments, [segment(0), segment(7)]);
        let slots = u64::from(rig.recovered.slots.slots_per_segment(class()));
        let counts = RecoveryCounts { slots_empty: 2 * slots - 2, ..RecoveryCounts::default() };
        assert_eq!(rig.recovered.counts, counts);
        assert_eq!(rig.read(slot(0, 0), ONE), Ok(()));
        assert_eq!(rig.read(slot(7, 5), TWO), Ok(()));
        assert_eq!(
            rig.recovered.blocks.iter().find(|found| found.slot == slot(0, 0)).map(|b| b.depth),
            Some(1)
        );
    }
}

#[test]
fn what_is_erased_deleted_or_replaced_does_not_come_back() {
    let dir = folder();
    let rig = Rig::open(config(dir.path()));
    for segment in 0..3 {
        assert_eq!(rig.create(segment), Ok(()));
        assert_eq!(
            rig.write(slot(segment, 1), Block { number: u64::from(segment), generation: 1 }, Ack::Durable),
            Ok(())
        );
    }
    assert_eq!(rig.erase(slot(0, 1)), Ok(()));
    assert_eq!(rig.delete(1), Ok(()));
    assert_eq!(rig.delete(1), Ok(()), "deleted is deleted");
    assert_eq!(rig.create(2), Ok(()));
    for segment in [0, 2] {
        let block = Block { number: u64::from(segment), generation: 1 };
        assert!(matches!(rig.read(slot(segment, 1), block), Err(ReadError::Corrupt(Damage::Header(_)))));
    }
    assert_eq!(rig.read(slot(1, 1), ONE), Err(ReadError::NoSegment(1)));
    drop(rig);
    let rig = Rig::open(config(dir.path()));
    assert_eq!(rig.blocks(), []);
    assert_eq!(rig.recovered.segments.iter().map(|found| found.segment).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn another_block_generation_tenant_or_identity_is_no_hit() {
    let dir = folder();
    let rig = Rig::open(config(dir.path()));
    assert_eq!(rig.create(0), Ok(()));
    assert_eq!(rig.write(slot(0, 0), ONE, Ack::Written), Ok(()));
    let name = ONE.name();
    let others = [
        BlockName { key: BlockKey([9; 32]), ..name },
        BlockName { generation: Generation(11), ..name },
        BlockName { tenant: TenantId([9; 16]), ..name },
        BlockName { fingerprint: Fingerprint([9; 32]), ..name },
        BlockName { payload_bytes: PAYLOAD_BYTES - 1, ..name },
    ];
    for expect in others {
        rig.send(Command::Read { tag: Tag(9), slot: slot(0, 0), expect, payload: blank() });
        let Done::Read { tag: Tag(9), result } = rig.answer() else { panic!("an answer to the read") };
        assert_eq!(result, Err(ReadError::Corrupt(Damage::OtherBlock)));
    }
}

#[test]
fn many_commands_get_one_answer_each() {
    const COUNT: u64 = 96;
    let dir = folder();
    let rig = Rig::open(config(dir.path()));
    let per_segment = u64::from(rig.recovered.slots.slots_per_segment(class()));
    let place = |number: u64| slot((number / per_segment) as u32, (number % per_segment) as u32);
    for segment in 0..=place(COUNT - 1).segment {
        rig.send(Command::CreateSegment { tag: Tag(1000), segment, class: class() });
    }
    for number in 0..COUNT {
        let block = Block { number, generation: number };
        let ack = if number % 3 == 0 { Ack::Durable } else { Ack::Written };
        let (header, payload) = (block.header(), block.area());
        rig.send(Command::Write { tag: Tag(number), slot: place(number), header, payload, ack });
    }
    let mut written: Vec<u64> = Vec::new();
    while written.len() < COUNT as usize {
        match rig.answer() {
            Done::Written { tag, result: Ok(()) } => written.push(tag.0),
            Done::SegmentCreated { result: Ok(()), .. } => {}
            other => panic!("{other:?}"),
        }
    }
    written.sort_unstable();
    assert_eq!(written, (0..COUNT).collect::<Vec<_>>());
    for number in 0..COUNT {
        assert_eq!(rig.read(place(number), Block { number, generation: number }), Ok(()));
    }
    drop(rig);
    assert_eq!(Rig::open(config(dir.path())).blocks().len(), COUNT as usize);
}

#[test]
fn a_segment_is_deleted_or_replaced_after_what_is_in_flight_on_it() {
    let dir = folder();
    let rig = Rig::open(config(dir.path()));
    assert_eq!(rig.create(0), Ok(()));
    for round in 0..20u64 {
        for index in 0..5 {
            let block = Block { number: u64::from(index), generation: round };
            let ack = if index % 2 == 0 { Ack::Durable } else { Ack::Written };
            let (header, payload) = (block.header(), block.area());
            rig.send(Command::Write { tag: Tag(3), slot: slot(0, index), header, payload, ack });
        }
        if round % 2 == 0 {
            rig.send(Command::DeleteSegment { tag: Tag(1), segment: 0 });
        }
        rig.send(Command::CreateSegment { tag: Tag(1), segment: 0, class: class() });
        let count = if round % 2 == 0 { 7 } else { 6 };
        let done: Vec<_> = (0..count).map(|_| rig.answer()).collect();
        let well = |done: &Done| match done {
            Done::Written { result, .. } => result.is_ok(),
            Done::SegmentCreated { result, .. } | Done::SegmentDeleted { result, .. } => result.is_ok(),
            _ => false,
        };
        assert!(done.iter().all(well), "{done:?}");
        assert!(matches!(done.last(), Some(Done::SegmentCreated { .. })));
    }
    drop(rig);
    assert_eq!(Rig::open(config(dir.path())).blocks(), []);
}

#[test]
fn commands_that_cannot_be_right_are_refused() {
    let dir = folder();
    let rig = Rig::open(config(dir.path()));
    assert_eq!(rig.write(slot(0, 0), ONE, Ack::Written), Err(WriteError::NoSegment(0)));
    assert_eq!(rig.create(8), Err(SegmentError::Misuse(Misuse::Budget)));
    rig.send(Command::CreateSegment {
        tag: Tag(1),
        segment: 0,
        class: SlotBytes::for_payload(SEGMENT_BYTES),
    });
    let Done::SegmentCreated { result, .. } = rig.answer() else { panic!("an answer to the creation") };
    assert_eq!(result, Err(SegmentError::Misuse(Misuse::Size)));

    assert_eq!(rig.create(0), Ok(()));
    let past = slot(0, rig.recovered.slots.slots_per_segment(class()));
    assert_eq!(rig.write(past, ONE, Ack::Written), Err(WriteError::Misuse(Misuse::NoSlot)));
    assert_eq!(rig.read(past, ONE), Err(ReadError::Misuse(Misuse::NoSlot)));

    let area = ONE.area();
    let wide = Region::heap(2 * area.len()).expect("memory");
    let crooked = wide.slice(512..512 + area.len()).expect("within");
    let short = area.slice(..4096).expect("within");
    let mut ranges = ONE.header();
    ranges.range_crcs.pop();
    let small = BlockHeader { payload_bytes: 1, range_bytes: 1, range_crcs: vec![0], ..ONE.header() };
    let cases = [
        (ONE.header(), crooked, Misuse::Memory),
        (ONE.header(), short, Misuse::Size),
        (small, area.clone(), Misuse::Size),
        (ranges, area.clone(), Misuse::Ranges),
        (BlockHeader { parent: None, ..ONE.header() }, area, Misuse::Ranges),
    ];
    for (header, payload, misuse) in cases {
        rig.send(Command::Write { tag: Tag(3), slot: slot(0, 0), header, payload, ack: Ack::Written });
        let Done::Written { result, .. } = rig.answer() else { panic!("an answer to the write") };
        assert_eq!(result, Err(WriteError::Misuse(misuse)));
    }
    assert!(matches!(rig.read(slot(0, 0), ONE), Err(ReadError::Corrupt(_))), "nothing was written");
}

#[test]
fn impossible_configurations_are_refused() {
    let dir = folder();
    let base = config(dir.path());
    let refused = |config: NvmeConfig| match Rig::try_open(config).err() {
        Some(NvmeError::Config(error)) => error,
        other => panic!("{other:?}"),
    };
    let config = NvmeConfig { bytes_max: SEGMENT_BYTES - 1, ..base.clone() };
    assert!(matches!(refused(config), NvmeConfigError::Budget { .. }));
    for segment_bytes in [0, 4096, 100_000, 1 << 50] {
        let config = NvmeConfig { segment_bytes, ..base.clone() };
        assert_eq!(refused(config), NvmeConfigError::SegmentBytes(segment_bytes));
    }
    assert!(matches!(
        refused(NvmeConfig { bytes_max: u64::MAX, ..base.clone() }),
        NvmeConfigError::Segments { .. }
    ));
    for queue_depth in [0, QUEUE_DEPTH_MAX + 1] {
        let config = NvmeConfig { queue_depth, ..base.clone() };
        assert_eq!(refused(config), NvmeConfigError::QueueDepth(queue_depth));
    }
}

/// What commands are answered that reach the tier together, so that the first is in flight when the others come.
fn together(dir: &Path, commands: Vec<Command>) -> Vec<Done> {
    let (opener, gate) = sync_channel::<()>(0);
    let (answers, done) = sync_channel(COMMANDS_MAX);
    let sink = Box::new(move |done| {
        // An error once the gate is open.
        gate.recv().ok();
        answers.send(done).expect("heard");
    });
    let (tier, _) = NvmeTier::open(config(dir), sink).expect("opens");
    let count = commands.len();
    // The tier waits in the answer to this one until all are sent.
    tier.try_send(Command::DeleteSegment { tag: Tag(0), segment: 7 }).expect("room");
    for command in commands {
        tier.try_send(command).expect("room");
    }
    drop(opener);
    done.iter().skip(1).take(count).collect()
}

#[test]
fn a_slot_is_written_by_one_command_at_a_time() {
    let dir = folder();
    let rig = Rig::open(config(dir.path()));
    assert_eq!(rig.create(0), Ok(()));
    assert_eq!(rig.write(slot(0, 0), ONE, Ack::Written), Ok(()));
    drop(rig);
    let at = slot(0, 0);
    let write = |tag| {
        let (header, payload) = (TWO.header(), TWO.area());
        Command::Write { tag: Tag(tag), slot: at, header, payload, ack: Ack::Written }
    };
    let read = |tag| Command::Read { tag: Tag(tag), slot: at, expect: ONE.name(), payload: blank() };
    let erase = |tag| Command::Erase { tag: Tag(tag), slot: at, ack: Ack::Written };

    let mut busy = Vec::new();
    for done in together(dir.path(), vec![read(1), read(2), write(3), erase(4)]) {
        match done {
            Done::Read { result, .. } => assert!(result.is_ok(), "many may read"),
            Done::Written { tag, result } | Done::Erased { tag, result } => busy.push((tag.0, result)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(busy, [3, 4].map(|tag| (tag, Err(WriteError::Misuse(Misuse::Busy)))));
    for done in together(dir.path(), vec![write(1), read(2), write(3), erase(4)]) {
        match done {
            Done::Read { result, .. } => assert_eq!(result, Err(ReadError::Misuse(Misuse::Busy))),
            Done::Written { tag: Tag(1), result } => assert_eq!(result, Ok(())),
            Done::Written { result, .. } | Done::Erased { result, .. } => {
                assert_eq!(result, Err(WriteError::Misuse(Misuse::Busy)));
            }
            other => panic!("{other:?}"),
        }
    }
}
