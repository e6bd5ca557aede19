//! The thread of a tier: takes commands, keeps the device busy, reports completions.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::mpsc::{Receiver, TryRecvError};

use hearth_proto::header::{BlockHeader, HEADER_BYTES};
use hearth_transfer::RegionSlice;

use crate::io::{Buffers, FileId, IO_ALIGN_BYTES, IoDone, IoFault, IoKind, IoTag, Wait};
use crate::slots::{Slot, SlotBytes};
use crate::tier::nvme::command::{
    Ack, BlockName, Command, Done, Misuse, ReadError, SegmentError, Tag, WriteError,
};
use crate::tier::nvme::device::{Device, Pages, page_bytes};
use crate::tier::nvme::format::location;
use crate::tier::nvme::segment::{self, NewSegment, Place, is_full};
use crate::tier::nvme::verify;
use crate::tier::nvme::{RecoveredSegment, Sink};

/// The state of a tier. Owned by its thread.
pub(super) struct Worker {
    device: Device,
    place: Place,
    sink: Sink,
    segments: BTreeMap<u32, Segment>,
    /// Generation of the next segment that is made.
    generation_next: u64,
    /// One page per operation in flight.
    pages: Pages,
    /// A page of zeros, shared by all erasures.
    zeros: RegionSlice,
    flights: HashMap<IoTag, Flight>,
    slots_in_use: HashMap<Slot, SlotUse>,
    /// Segments with blocks that wait for a sync to start.
    sync_wanted: BTreeSet<u32>,
}

/// An open segment.
pub(super) struct Segment {
    pub(super) file: FileId,
    pub(super) class: SlotBytes,
    pub(super) slots: u32,
    /// Whether a write or sync failed; then it takes no more writes.
    poisoned: bool,
    /// Whether something was written since the last sync started.
    dirty: bool,
    /// Operations in flight.
    in_flight: usize,
    /// Written, to be made durable by the next sync.
    written: Vec<Owed>,
    /// Being made durable by the sync in flight, if there is one.
    syncing: Option<Vec<Owed>>,
}

impl Segment {
    pub(super) fn new(file: FileId, class: SlotBytes, slots: u32) -> Self {
        Self {
            file,
            class,
            slots,
            poisoned: false,
            dirty: false,
            in_flight: 0,
            written: Vec::new(),
            syncing: None,
        }
    }

    pub(super) fn set_read_only(&mut self) {
        self.poisoned = true;
    }

    pub(super) fn recovered(&self, number: u32) -> RecoveredSegment {
        RecoveredSegment { segment: number, class: self.class, writable: self.is_writable() }
    }

    pub(super) fn is_writable(&self) -> bool {
        !self.poisoned
    }

    fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.written.is_empty()
    }
}

/// An answer that is owed for a write.
#[derive(Clone, Copy, Debug)]
enum Owed {
    Write(Tag),
    Erase(Tag),
}

impl Owed {
    fn done(self, result: Result<(), WriteError>) -> Done {
        match self {
            Self::Write(tag) => Done::Written { tag, result },
            Self::Erase(tag) => Done::Erased { tag, result },
        }
    }
}

/// An operation in flight.
enum Flight {
    Write { owed: Owed, slot: Slot, ack: Ack, page: Option<RegionSlice> },
    Read { tag: Tag, slot: Slot, expect: BlockName, page: RegionSlice, payload: RegionSlice },
    Sync { segment: u32 },
}

/// What is in flight on a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotUse {
    Reads(u32),
    Write,
}

/// What a tier starts from.
pub(super) struct Start {
    pub(super) device: Device,
    pub(super) place: Place,
    pub(super) pages: Pages,
    pub(super) zeros: RegionSlice,
    pub(super) segments: BTreeMap<u32, Segment>,
    pub(super) generation_next: u64,
}

impl Worker {
    pub(super) fn new(start: Start, sink: Sink) -> Self {
        Self {
            device: start.device,
            place: start.place,
            sink,
            segments: start.segments,
            generation_next: start.generation_next,
            pages: start.pages,
            zeros: start.zeros,
            flights: HashMap::new(),
            slots_in_use: HashMap::new(),
            sync_wanted: BTreeSet::new(),
        }
    }

    /// Works until every sender is gone and everything they sent is done and synced.
    pub(super) fn work(mut self, commands: &Receiver<Command>) {
        let mut open = true;
        while open || self.device.outstanding() > 0 || !self.sync_wanted.is_empty() {
            self.start_syncs();
            while open && self.device.has_room() {
                match commands.try_recv() {
                    Ok(command) => self.apply(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => open = false,
                }
                self.start_syncs();
            }
            if open || self.device.outstanding() > 0 {
                self.turn();
            }
        }
        self.sync_all();
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Write { tag, slot, header, payload, ack } => {
                if let Err(error) = self.write(tag, slot, header, (payload, ack)) {
                    (self.sink)(Done::Written { tag, result: Err(error) });
                }
            }
            Command::Read { tag, slot, expect, payload } => {
                if let Err(error) = self.read(tag, slot, expect, payload) {
                    (self.sink)(Done::Read { tag, result: Err(error) });
                }
            }
            Command::Erase { tag, slot, ack } => {
                if let Err(error) = self.erase(tag, slot, ack) {
                    (self.sink)(Done::Erased { tag, result: Err(error) });
                }
            }
            Command::CreateSegment { tag, segment, class } => {
                let result = self.create(segment, class);
                (self.sink)(Done::SegmentCreated { tag, segment, result });
            }
            Command::DeleteSegment { tag, segment } => {
                let result = self.delete(segment);
                (self.sink)(Done::SegmentDeleted { tag, segment, result });
            }
        }
    }

    fn write(
        &mut self,
        tag: Tag,
        slot: Slot,
        header: BlockHeader,
        (payload, ack): (RegionSlice, Ack),
    ) -> Result<(), WriteError> {
        let class = self.writable(slot)?;
        if SlotBytes::for_payload(header.payload_bytes) != class
            || payload.len() as u64 != class.payload_area()
        {
            return Err(WriteError::Misuse(Misuse::Size));
        }
        if !verify::well_formed(&header) {
            return Err(WriteError::Misuse(Misuse::Ranges));
        }
        if !is_aligned(&payload) {
            return Err(WriteError::Misuse(Misuse::Memory));
        }
        let page = self.pages.take().expect("a page per operation");
        let header = BlockHeader { location: location(slot), ..header };
        page.copy_from(&header.encode()[..]).expect("a page has the bytes of a header");
        let from = Buffers::two(page.clone(), payload);
        self.start_write(Flight::Write { owed: Owed::Write(tag), slot, ack, page: Some(page) }, slot, from);
        Ok(())
    }

    fn erase(&mut self, tag: Tag, slot: Slot, ack: Ack) -> Result<(), WriteError> {
        self.writable(slot)?;
        let from = Buffers::one(self.zeros.clone());
        self.start_write(Flight::Write { owed: Owed::Erase(tag), slot, ack, page: None }, slot, from);
        Ok(())
    }

    /// The class of a slot that may be written now.
    fn writable(&self, slot: Slot) -> Result<SlotBytes, WriteError> {
        let segment = self.segments.get(&slot.segment).ok_or(WriteError::NoSegment(slot.segment))?;
        if segment.poisoned {
            return Err(WriteError::Poisoned(slot.segment));
        }
        if slot.index >= segment.slots {
            return Err(WriteError::Misuse(Misuse::NoSlot));
        }
        if self.slots_in_use.contains_key(&slot) {
            return Err(WriteError::Misuse(Misuse::Busy));
        }
        Ok(segment.class)
    }

    fn start_write(&mut self, flight: Flight, slot: Slot, from: Buffers) {
        self.slots_in_use.insert(slot, SlotUse::Write);
        let offset = self.offset(slot);
        let segment = self.segments.get_mut(&slot.segment).expect("checked to exist");
        segment.in_flight += 1;
        segment.dirty = true;
        let tag = self.device.start(segment.file, IoKind::Write { offset, from });
        self.flights.insert(tag, flight);
    }

    fn read(
        &mut self,
        tag: Tag,
        slot: Slot,
        expect: BlockName,
        payload: RegionSlice,
    ) -> Result<(), ReadError> {
        let segment = self.segments.get(&slot.segment).ok_or(ReadError::NoSegment(slot.segment))?;
        let misuse = |misuse| Err(ReadError::Misuse(misuse));
        if slot.index >= segment.slots {
            return misuse(Misuse::NoSlot);
        }
        if payload.len() as u64 != segment.class.payload_area() {
            return misuse(Misuse::Size);
        }
        if !is_aligned(&payload) || !payload.is_writable() {
            return misuse(Misuse::Memory);
        }
        let reads = match self.slots_in_use.get(&slot) {
            None => 1,
            Some(SlotUse::Reads(reads)) => reads + 1,
            Some(SlotUse::Write) => return misuse(Misuse::Busy),
        };
        self.slots_in_use.insert(slot, SlotUse::Reads(reads));
        let offset = self.offset(slot);
        let page = self.pages.take().expect("a page per operation");
        let into = Buffers::two(page.clone(), payload.clone());
        let segment = self.segments.get_mut(&slot.segment).expect("checked to exist");
        segment.in_flight += 1;
        let io_tag = self.device.start(segment.file, IoKind::Read { offset, into });
        self.flights.insert(io_tag, Flight::Read { tag, slot, expect, page, payload });
        Ok(())
    }

    /// Where a slot starts in its file.
    fn offset(&self, slot: Slot) -> u64 {
        let class = self.segments[&slot.segment].class;
        self.place.geometry.offset_in_segment(slot.index, class)
    }

    fn create(&mut self, segment: u32, class: SlotBytes) -> Result<(), SegmentError> {
        self.place.check(segment, class)?;
        self.close(segment);
        segment::delete(&self.place, segment)?;
        let new = NewSegment { segment, class, generation: self.generation_next };
        let page = self.pages.take().expect("a page per operation");
        let made = segment::create(&mut self.device, &self.place, new, &page);
        self.pages.give(page);
        let file = made.inspect_err(|error| tracing::warn!(segment, %error, "a segment was not made"))?;
        self.generation_next += 1;
        let slots = self.place.geometry.slots_per_segment(class);
        self.segments.insert(segment, Segment::new(file, class, slots));
        Ok(())
    }

    fn delete(&mut self, segment: u32) -> Result<(), SegmentError> {
        self.close(segment);
        segment::delete(&self.place, segment)
    }

    /// Closes a segment, after what is in flight on it.
    fn close(&mut self, number: u32) {
        while self.segments.get(&number).is_some_and(|segment| !segment.is_idle()) {
            self.start_syncs();
            self.turn();
        }
        if let Some(segment) = self.segments.remove(&number) {
            self.device.io().close(segment.file);
        }
    }

    /// Starts a sync of each segment with blocks that wait for one, as far as there is room. Blocks written while a
    /// sync runs share the next one.
    fn start_syncs(&mut self) {
        let wanted: Vec<u32> = self.sync_wanted.iter().copied().collect();
        for number in wanted {
            let segment = self.segments.get_mut(&number).expect("open while blocks wait");
            if segment.syncing.is_some() {
                continue;
            }
            if !self.device.has_room() {
                return;
            }
            self.sync_wanted.remove(&number);
            segment.syncing = Some(std::mem::take(&mut segment.written));
            segment.dirty = segment.in_flight > 0;
            segment.in_flight += 1;
            let tag = self.device.start(segment.file, IoKind::Sync);
            self.flights.insert(tag, Flight::Sync { segment: number });
        }
    }

    /// Waits for completions and handles them.
    fn turn(&mut self) {
        let mut done = Vec::new();
        self.device.reap(&mut done, Wait::Forever);
        for completion in done {
            self.complete(completion);
        }
    }

    fn complete(&mut self, completion: IoDone) {
        let result = completion.result;
        let flight = self.flights.remove(&completion.op.tag).expect("a flight per operation");
        match flight {
            Flight::Write { owed, slot, ack, page } => {
                self.slots_in_use.remove(&slot);
                page.into_iter().for_each(|page| self.pages.give(page));
                self.landed(slot.segment).in_flight -= 1;
                self.complete_write(owed, slot, ack, result);
            }
            Flight::Read { tag, slot, expect, page, payload } => {
                self.release_read(slot);
                let class = self.landed(slot.segment).class;
                self.landed(slot.segment).in_flight -= 1;
                let result = result.map_err(ReadError::Io).and_then(|()| {
                    let header = verify::header(&page_bytes(&page), slot, class)?;
                    verify::named(&header, &expect)?;
                    verify::payload(&header, &payload)?;
                    Ok(Box::new(header))
                });
                self.pages.give(page);
                (self.sink)(Done::Read { tag, result });
            }
            Flight::Sync { segment } => self.complete_sync(segment, result),
        }
    }

    fn complete_write(&mut self, owed: Owed, slot: Slot, ack: Ack, result: Result<(), IoFault>) {
        let number = slot.segment;
        match result {
            Err(IoFault::Os(errno)) if is_full(errno) => (self.sink)(owed.done(Err(WriteError::Full))),
            Err(fault) => {
                self.poison(number, fault);
                (self.sink)(owed.done(Err(WriteError::Poisoned(number))));
            }
            Ok(()) if ack == Ack::Written => (self.sink)(owed.done(Ok(()))),
            Ok(()) => {
                let segment = self.landed(number);
                if segment.poisoned {
                    (self.sink)(owed.done(Err(WriteError::Poisoned(number))));
                } else {
                    segment.written.push(owed);
                    self.sync_wanted.insert(number);
                }
            }
        }
    }

    fn complete_sync(&mut self, number: u32, result: Result<(), IoFault>) {
        let segment = self.landed(number);
        segment.in_flight -= 1;
        let synced = segment.syncing.take().expect("one sync of a segment at a time");
        if let Err(fault) = result {
            self.poison(number, fault);
        }
        for owed in synced {
            (self.sink)(owed.done(result.map_err(|_| WriteError::Poisoned(number))));
        }
    }

    /// Takes no more writes for a segment, and fails those that wait to be made durable.
    fn poison(&mut self, number: u32, fault: IoFault) {
        self.sync_wanted.remove(&number);
        let segment = self.landed(number);
        let first = !std::mem::replace(&mut segment.poisoned, true);
        let waiting = std::mem::take(&mut segment.written);
        if first {
            let path = self.place.path(number);
            tracing::error!(path = %path.display(), %fault, "a segment takes no more writes; check the device");
        }
        for owed in waiting {
            (self.sink)(owed.done(Err(WriteError::Poisoned(number))));
        }
    }

    fn release_read(&mut self, slot: Slot) {
        match self.slots_in_use.get(&slot) {
            Some(SlotUse::Reads(reads)) if *reads > 1 => {
                let left = SlotUse::Reads(reads - 1);
                self.slots_in_use.insert(slot, left);
            }
            Some(SlotUse::Reads(_)) => {
                self.slots_in_use.remove(&slot);
            }
            Some(SlotUse::Write) | None => unreachable!("a slot that is read is marked so"),
        }
    }

    /// The segment of an operation that landed: it is not closed before.
    fn landed(&mut self, segment: u32) -> &mut Segment {
        self.segments.get_mut(&segment).expect("a segment is open while something is in flight on it")
    }

    /// Syncs what was written without being asked to last, at the end.
    fn sync_all(&mut self) {
        for (number, segment) in &self.segments {
            if !segment.dirty || segment.poisoned {
                continue;
            }
            if let Err(fault) = self.device.run(segment.file, IoKind::Sync) {
                tracing::error!(segment = number, %fault, "a segment could not be synced; recent blocks may be lost");
            }
        }
    }
}

fn is_aligned(payload: &RegionSlice) -> bool {
    let raw = payload.raw();
    raw.ptr.addr().is_multiple_of(IO_ALIGN_BYTES) && raw.len.is_multiple_of(IO_ALIGN_BYTES)
}

const _: () = assert!(HEADER_BYTES.is_multiple_of(IO_ALIGN_BYTES));
