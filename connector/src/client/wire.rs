//! Frames on a non-blocking unix socket. Nothing here waits, except where a deadline is given.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use hearth_proto::frame::{self, FRAME_HEADER_BYTES, FrameError, FrameHeader};
use hearth_proto::limit::{FRAME_BYTES_MAX, REGIONS_MAX};
use hearth_transfer::{recv_with_fds, send_with_fds};
use prost::Message;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::error::Violation;

/// Bytes taken from the socket at once.
const READ_BYTES: usize = 64 << 10;

/// Bytes that may wait to be sent before a new frame has to wait: so at most two of the largest frames.
const OUT_BYTES_MAX: usize = FRAME_BYTES_MAX;

/// Connects without waiting; a node whose backlog is full is as good as absent.
pub(super) fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &address)?;
    Ok(socket.into())
}

/// Frames on their way in.
#[derive(Debug)]
pub(super) struct FrameReader {
    scratch: Box<[u8]>,
    bytes: Vec<u8>,
    /// How much of `bytes` has been taken.
    taken: usize,
    fds: VecDeque<OwnedFd>,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    Bytes,
    Nothing,
    Closed,
}

impl FrameReader {
    pub(super) fn new() -> Self {
        let scratch = vec![0; READ_BYTES].into_boxed_slice();
        Self { scratch, bytes: Vec::new(), taken: 0, fds: VecDeque::new() }
    }

    /// Takes what the socket has, once.
    pub(super) fn fill(&mut self, socket: &UnixStream) -> io::Result<Filled> {
        match recv_with_fds(socket, &mut self.scratch) {
            Ok((0, _)) => Ok(Filled::Closed),
            Ok((count, fds)) => {
                self.bytes.drain(..self.taken);
                self.taken = 0;
                self.bytes.extend_from_slice(&self.scratch[..count]);
                self.fds.extend(fds);
                Ok(Filled::Bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Filled::Nothing),
            Err(error) => Err(error),
        }
    }

    /// The next whole frame and its descriptors, if it is here.
    ///
    /// # Errors
    /// When the bytes are no frame, or descriptors came that no frame speaks of.
    pub(super) fn next<M: Message + Default>(&mut self) -> Result<Option<(M, Vec<OwnedFd>)>, Violation> {
        if self.fds.len() > REGIONS_MAX {
            return Err(Violation::Descriptors(self.fds.len(), REGIONS_MAX));
        }
        let rest = &self.bytes[self.taken..];
        let Some((head, rest)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
        let FrameHeader { body_bytes, descriptors } = FrameHeader::decode(*head)?;
        let Some(body) = rest.get(..body_bytes) else { return Ok(None) };
        let message = frame::decode(body)?;
        if descriptors > self.fds.len() {
            return Err(Violation::Descriptors(self.fds.len(), descriptors));
        }
        self.taken += FRAME_HEADER_BYTES + body_bytes;
        Ok(Some((message, self.fds.drain(..descriptors).collect())))
    }
}

/// Frames on their way out.
#[derive(Debug, Default)]
pub(super) struct OutBuffer {
    bytes: Vec<u8>,
    sent: usize,
}

impl OutBuffer {
    /// Whether another frame may be added.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() - self.sent <= OUT_BYTES_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds a frame.
    ///
    /// # Errors
    /// When the message is over the limit of a frame.
    pub(super) fn push<M: Message>(&mut self, message: &M) -> Result<(), FrameError> {
        let frame = frame::encode(message, 0)?;
        if self.sent >= self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        if self.is_empty() {
            self.bytes = frame;
        } else {
            self.bytes.extend_from_slice(&frame);
        }
        Ok(())
    }

    /// Sends what the socket takes now.
    pub(super) fn flush(&mut self, socket: &UnixStream) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            match send_with_fds(socket, &self.bytes[self.sent..], &[]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}

/// Wakes the connection's thread out of [`wait`].
#[derive(Debug)]
pub(super) struct Wake {
    event: OwnedFd,
}

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    pub(super) fn wake(&self) {
        // The only failure is a full counter, and then the thread wakes anyway.
        let _full = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _empty = rustix::io::read(&self.event, &mut [0; 8]);
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// What [`wait`] waits for beside the wake-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    Input,
    InputAndRoom,
}

/// Waits until the socket is ready, somebody wakes the thread, or `until` passes.
pub(super) fn wait(wake: &Wake, socket: Option<(&UnixStream, For)>, until: Option<Instant>) {
    let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
    let timeout = timeout.map(|left| Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    });
    let mut fds = vec![PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN)];
    if let Some((socket, interest)) = socket {
        let flags = match interest {
            For::Input => PollFlags::IN,
            For::InputAndRoom => PollFlags::IN | PollFlags::OUT,
        };
        fds.push(PollFd::from_borrowed_fd(socket.as_fd(), flags));
    }
    // An interrupted or failed poll is a spurious wake-up: the caller looks at everything anyway.
    let _ready = poll(&mut fds, timeout.as_ref());
    wake.clear();
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_proto::v1;
    use proptest::prelude::*;
    use std::io::Write;

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        ours.set_nonblocking(true).expect("a mode");
        (ours, theirs)
    }

    proptest! {
        #[test]
        fn frames_arrive_whole_however_they_are_cut(
            sizes in prop::collection::vec(0usize..3000, 1..8), cut in 1usize..2000,
        ) {
            let (ours, mut theirs) = pair();
            let frames = sizes.iter().map(|&size| v1::Match { keys: vec![7; size] });
            let bytes: Vec<u8> =
                frames.flat_map(|message| frame::encode(&message, 0).expect("small")).collect();
            let mut reader = FrameReader::new();
            let mut received = Vec::new();
            for piece in bytes.chunks(cut) {
                theirs.write_all(piece).expect("room");
                prop_assert_eq!(reader.fill(&ours).expect("open"), Filled::Bytes);
                while let Some((message, fds)) = reader.next::<v1::Match>().expect("frames") {
                    prop_assert!(fds.is_empty());
                    received.push(message.keys.len());
                }
            }
            prop_assert_eq!(received, sizes);
            prop_assert_eq!(reader.fill(&ours).expect("open"), Filled::Nothing);
            drop(theirs);
            prop_assert_eq!(reader.fill(&ours).expect("open"), Filled::Closed);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), head in any::<bool>()) {
            let (ours, mut theirs) = pair();
            if head {
                theirs.write_all(&[b'H', b'F', 0, 0, 20, 0, 0, 0]).expect("room");
            }
            theirs.write_all(&bytes).expect("room");
            let mut reader = FrameReader::new();
            let _ = reader.fill(&ours);
            while let Ok(Some(_)) = reader.next::<v1::Reply>() {}
        }
    }

    #[test]
    fn what_the_socket_does_not_take_waits_in_order_and_within_a_bound() {
        let (ours, theirs) = pair();
        theirs.set_nonblocking(true).expect("a mode");
        let mut out = OutBuffer::default();
        let mut pushed = 0;
        while out.has_room() {
            out.push(&v1::Match { keys: vec![pushed; 1 << 20] }).expect("small enough");
            out.flush(&ours).expect("open");
            pushed += 1;
        }
        assert!(!out.is_empty());
        let mut reader = FrameReader::new();
        let mut received = 0;
        while received < pushed {
            out.flush(&ours).expect("open");
            reader.fill(&theirs).expect("open");
            while let Some((message, _)) = reader.next::<v1::Match>().expect("frames") {
                assert_eq!(message.keys, vec![received; 1 << 20]);
                received += 1;
            }
        }
        assert!(out.is_empty());
    }
}
