//! A device that fails on purpose: any other [`BlockIo`] with the nth call broken, or with the power cut.
//!
//! A power cut keeps what was synced and an arbitrary part, by sectors, of what was not. For that the bytes under
//! every write are remembered until a sync that was started after the write had landed succeeds.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;

use rustix::io::Errno;

use crate::io::{BlockIo, Buffers, FileId, IoDone, IoFault, IoKind, IoOp, IoPick, IoTag, Open, Wait};

/// Bytes that a device writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// How a call is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails and does nothing.
    Fails(Errno),
    /// Its first window alone is written or filled, and it fails.
    Torn(Errno),
    /// A write or sync that does nothing and succeeds.
    Lost,
    /// A read or write that goes so many bytes further on, and succeeds.
    Astray(u64),
}

/// What is broken, shared between a test and its device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    calls: u64,
    broken: Option<(u64, Fault)>,
    struck: Option<&'static str>,
    /// From this call on nothing reaches the device.
    cut_at: Option<u64>,
    unsynced: Vec<Unsynced>,
    writes: u64,
}

/// A write that a power cut may undo.
#[derive(Debug)]
struct Unsynced {
    file: Arc<File>,
    inode: u64,
    number: u64,
    landed: bool,
    offset: u64,
    before: Vec<u8>,
}

impl Plan {
    /// Breaks the call of this number, counted from 0 over opens, allocations and operations.
    pub(crate) fn once(call: u64, fault: Fault) -> Self {
        let plan = Self::default();
        plan.lock().broken = Some((call, fault));
        plan
    }

    /// What the broken call was, once it was made and could be broken so.
    pub(crate) fn struck(&self) -> Option<&'static str> {
        self.lock().struck
    }

    /// Calls made so far.
    #[cfg(test)]
    pub(crate) fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// After so many more calls nothing reaches the device: a thread that tries ends there.
    pub(crate) fn cut_power_in(&self, calls: u64) {
        let mut state = self.lock();
        state.cut_at = Some(state.calls + calls);
    }

    /// After the power was cut and the device closed: undoes what `lost` says, sector by sector, of what was written
    /// and not synced.
    pub(crate) fn lose(&self, mut lost: impl FnMut() -> bool) {
        let mut state = self.lock();
        while let Some(write) = state.unsynced.pop() {
            for (at, sector) in write.before.chunks(SECTOR_BYTES).enumerate() {
                if lost() {
                    let offset = write.offset + (at * SECTOR_BYTES) as u64;
                    write.file.write_all_at(sector, offset).expect("the file below is healthy");
                }
            }
        }
    }

    /// The process is gone and the machine runs on: what it had started lands, synced or not, and the next process may
    /// begin.
    pub(crate) fn restart(&self) {
        let mut state = self.lock();
        state.cut_at = None;
        state.unsynced.iter_mut().for_each(|write| write.landed = true);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Counts a call, and says how it is broken.
    fn call(&self, name: &'static str, fits: impl Fn(Fault) -> bool) -> Option<Fault> {
        let mut state = self.lock();
        let number = state.calls;
        state.calls += 1;
        if state.cut_at.is_some_and(|at| number >= at) {
            drop(state);
            // The caller gets no further, as if the machine had stopped. Unlike a panic this says nothing.
            std::panic::resume_unwind(Box::new("the power was cut"));
        }
        let (_, fault) = state.broken.filter(|(call, fault)| *call == number && fits(*fault))?;
        state.struck = Some(name);
        Some(fault)
    }
}

/// The device.
pub(crate) struct FaultIo {
    inner: Box<dyn BlockIo>,
    plan: Plan,
    files: HashMap<FileId, Arc<File>>,
    /// Completions of calls that never reached the inner device.
    made_up: Vec<IoDone>,
    /// Operations that were changed on their way in, as they were.
    changed: HashMap<IoTag, (IoOp, Result<(), IoFault>)>,
    /// By tag of a write, its number; by tag of a sync, the writes it covers.
    numbers: HashMap<IoTag, u64>,
    covered: HashMap<IoTag, Vec<u64>>,
}

impl FaultIo {
    pub(crate) fn new(inner: Box<dyn BlockIo>, plan: Plan) -> Self {
        Self {
            inner,
            plan,
            files: HashMap::new(),
            made_up: Vec::new(),
            changed: HashMap::new(),
            numbers: HashMap::new(),
            covered: HashMap::new(),
        }
    }

    /// Remembers what a write covers up, or what a sync makes lasting.
    fn note(&mut self, op: &IoOp) {
        let mut state = self.plan.lock();
        match &op.kind {
            IoKind::Read { .. } => {}
            IoKind::Write { offset, from } => {
                let file = Arc::clone(&self.files[&op.file]);
                let mut before = vec![0; from.len()];
                // Past the end there was nothing, which reads as zeros.
                let _ = file.read_at(&mut before, *offset).expect("the file below is healthy");
                state.writes += 1;
                let (number, inode) = (state.writes, inode(&file));
                state.unsynced.push(Unsynced { file, inode, number, landed: false, offset: *offset, before });
                self.numbers.insert(op.tag, number);
            }
            IoKind::Sync => {
                let inode = inode(&self.files[&op.file]);
                let landed = state.unsynced.iter().filter(|write| write.inode == inode && write.landed);
                self.covered.insert(op.tag, landed.map(|write| write.number).collect());
            }
        }
    }

    /// Takes note of a completion, and gives it the shape that the submitter expects.
    fn settle(&mut self, done: IoDone) -> IoDone {
        let tag = done.op.tag;
        let mut state = self.plan.lock();
        if let Some(number) = self.numbers.remove(&tag) {
            state
                .unsynced
                .iter_mut()
                .filter(|write| write.number == number)
                .for_each(|write| write.landed = true);
        }
        if let Some(covered) = self.covered.remove(&tag)
            && done.result.is_ok()
        {
            state.unsynced.retain(|write| !covered.contains(&write.number));
        }
        drop(state);
        match self.changed.remove(&tag) {
            Some((op, result)) => IoDone { op, result: done.result.and(result) },
            None => done,
        }
    }

    fn forward(&mut self, op: IoOp) -> Result<(), IoOp> {
        self.note(&op);
        self.inner.submit(op)
    }

    /// Forwards an operation in another form.
    fn forward_changed(&mut self, op: IoOp, kind: IoKind, result: Result<(), IoFault>) -> Result<(), IoOp> {
        let changed = IoOp { tag: op.tag, file: op.file, kind };
        self.changed.insert(op.tag, (op, result));
        self.forward(changed)
    }
}

/// Names a file across processes. It is not used again while the file is held open, which a plan does as long as it
/// may have to undo a write.
fn inode(file: &File) -> u64 {
    rustix::fs::fstat(file).expect("an open file").st_ino
}

fn name(kind: &IoKind) -> &'static str {
    match kind {
        IoKind::Read { .. } => "read",
        IoKind::Write { .. } => "write",
        IoKind::Sync => "sync",
    }
}

/// Whether a fault can strike such an operation.
fn fits(kind: &IoKind, fault: Fault) -> bool {
    match (fault, kind) {
        (Fault::Fails(_), _) | (Fault::Astray(_), IoKind::Read { .. } | IoKind::Write { .. }) => true,
        (Fault::Torn(_), IoKind::Write { from: buffers, .. } | IoKind::Read { into: buffers, .. }) => {
            buffers.second().is_some()
        }
        (Fault::Lost, IoKind::Write { .. } | IoKind::Sync) => true,
        _ => false,
    }
}

impl BlockIo for FaultIo {
    fn pick(&self) -> &IoPick {
        self.inner.pick()
    }

    fn open(&mut self, path: &Path, open: Open) -> Result<FileId, Errno> {
        if let Some(Fault::Fails(errno)) = self.plan.call("open", |fault| matches!(fault, Fault::Fails(_))) {
            return Err(errno);
        }
        let file = self.inner.open(path, open)?;
        let own = File::options().read(true).write(true).open(path).expect("just opened");
        self.files.insert(file, Arc::new(own));
        Ok(file)
    }

    fn allocate(&mut self, file: FileId, bytes: u64) -> Result<(), Errno> {
        match self.plan.call("allocate", |fault| matches!(fault, Fault::Fails(_))) {
            Some(Fault::Fails(errno)) => Err(errno),
            _ => self.inner.allocate(file, bytes),
        }
    }

    fn file_bytes(&self, file: FileId) -> Result<u64, Errno> {
        self.inner.file_bytes(file)
    }

    fn close(&mut self, file: FileId) {
        self.files.remove(&file);
        self.inner.close(file);
    }

    fn submit(&mut self, op: IoOp) -> Result<(), IoOp> {
        let fault = self.plan.call(name(&op.kind), |fault| fits(&op.kind, fault));
        let made_up = |op, result| IoDone { op, result };
        match (fault, &op.kind) {
            (Some(Fault::Fails(errno)), _) => self.made_up.push(made_up(op, Err(IoFault::Os(errno)))),
            (Some(Fault::Lost), _) => self.made_up.push(made_up(op, Ok(()))),
            (Some(Fault::Torn(errno)), IoKind::Write { offset, from: buffers }) => {
                let kind = IoKind::Write { offset: *offset, from: Buffers::one(buffers.first().clone()) };
                return self.forward_changed(op, kind, Err(IoFault::Os(errno)));
            }
            (Some(Fault::Torn(errno)), IoKind::Read { offset, into: buffers }) => {
                let kind = IoKind::Read { offset: *offset, into: Buffers::one(buffers.first().clone()) };
                return self.forward_changed(op, kind, Err(IoFault::Os(errno)));
            }
            (Some(Fault::Astray(by)), IoKind::Write { offset, from }) => {
                let kind = IoKind::Write { offset: offset + by, from: from.clone() };
                return self.forward_changed(op, kind, Ok(()));
            }
            (Some(Fault::Astray(by)), IoKind::Read { offset, into }) => {
                let kind = IoKind::Read { offset: offset + by, into: into.clone() };
                return self.forward_changed(op, kind, Ok(()));
            }
            _ => return self.forward(op),
        }
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<IoDone>, wait: Wait) {
        let wait = if self.made_up.is_empty() { wait } else { Wait::Poll };
        let mut landed = std::mem::take(&mut self.made_up);
        self.inner.reap(&mut landed, wait);
        for completion in landed {
            let settled = self.settle(completion);
            done.push(settled);
        }
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.made_up.len()
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}
