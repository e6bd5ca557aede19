//! Shared memory between two real processes: the test starts itself again as the owner of the memory,
//! with one end of a socket pair as standard input. The owner sends ticket and descriptor over it and
//! is then killed.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use hearth_transfer::transport::shm::Shm;
use hearth_transfer::{
    Access, Event, Export, Generation, PeerAddress, Region, RegionId, RegionTicket, Transport, copy_digest,
    digest, recv_with_fds, send_all_with_fds,
};

const OWNER: &str = "HEARTH_TRANSFER_TEST_OWNER";
const BYTES: usize = 1 << 20;

#[test]
fn memory_of_another_process_is_read_written_and_outlives_it() {
    if std::env::var_os(OWNER).is_some() {
        let socket = std::io::stdin().as_fd().try_clone_to_owned().expect("duplicates");
        return own_memory(&UnixStream::from(socket));
    }
    let (mut socket, theirs) = UnixStream::pair().expect("a pair");
    let mut owner = Owner::start(theirs);

    let mut shm = Shm::new();
    let link = socket.as_fd().try_clone_to_owned().expect("duplicates");
    let peer = shm.open_peer(PeerAddress::Link(link)).expect("opens");
    let export = receive(&socket);
    let remote = shm.import(peer, export, Access::ReadWrite).expect("imports");
    let there = remote.direct().expect("shared memory is addressable");

    let here = Region::heap(BYTES).expect("memory");
    let landed = copy_digest(&here.whole(), &there.whole()).expect("same length");
    assert_eq!(here.whole().to_vec(), pattern());
    assert_eq!(landed, crc32fast::hash(&pattern()));

    there.slice(..5).expect("inside").copy_from(b"reply").expect("writable");
    socket.write_all(b"!").expect("the owner waits");
    let mut seen = [0; 5];
    socket.read_exact(&mut seen).expect("the owner answers");
    assert_eq!(&seen, b"reply");

    owner.kill();
    let mut events = Vec::new();
    shm.reap(Instant::now(), &mut events);
    assert!(matches!(events[..], [Event::PeerGone(gone)] if gone == peer));
    let rest = there.slice(4096..).expect("inside");
    assert_eq!(digest(&rest), crc32fast::hash(&pattern()[4096..]), "the mapping outlives its owner");
}

/// The owner's side: offer memory, show what the peer wrote, wait to be killed.
fn own_memory(socket: &UnixStream) {
    let region = Region::shared("two-processes", BYTES).expect("memory");
    region.whole().copy_from(&pattern()).expect("same length");
    let Export { ticket, fd } = region.export(Access::ReadWrite).expect("exports");
    let mut frame = Vec::new();
    for word in [ticket.id.0, ticket.generation.0, ticket.bytes] {
        frame.extend(word.to_le_bytes());
    }
    let fd = fd.expect("shared memory has a descriptor");
    send_all_with_fds(socket, &frame, &[fd.as_fd()]).expect("the parent reads");
    let mut socket = socket;
    socket.read_exact(&mut [0]).expect("the parent has written");
    socket.write_all(&region.slice(..5).expect("inside").to_vec()).expect("the parent reads");
    let _ended = socket.read(&mut [0]);
}

fn receive(socket: &UnixStream) -> Export {
    let mut frame = [0; 24];
    let (received, mut fds) = recv_with_fds(socket, &mut frame).expect("the owner sends");
    assert_eq!((received, fds.len()), (24, 1));
    let word = |at: usize| u64::from_le_bytes(frame[at..at + 8].try_into().expect("eight bytes"));
    let ticket = RegionTicket {
        id: RegionId(word(0)),
        generation: Generation(word(8)),
        bytes: word(16),
        transport: Vec::new(),
    };
    let fd: Option<OwnedFd> = fds.pop();
    Export { ticket, fd }
}

fn pattern() -> Vec<u8> {
    (0..BYTES).map(|at| (at * 131 + at / 4093) as u8).collect()
}

/// The other process; killed when the test ends, however it ends.
struct Owner(Child);

impl Owner {
    fn start(socket: UnixStream) -> Self {
        let own = std::env::current_exe().expect("this test has a path");
        let mut command = Command::new(own);
        command.env(OWNER, "1").stdin(OwnedFd::from(socket)).stdout(Stdio::null());
        Self(command.spawn().expect("starts"))
    }

    fn kill(&mut self) {
        self.0.kill().expect("it is our child");
        self.0.wait().expect("it is our child");
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _already_dead = self.0.kill();
        let _reaped = self.0.wait();
    }
}
