//! A node that does what a test tells it to, over the real framing, a real socket and real shared memory.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use hearth_connector::conformance::{self, payload_bytes};
use hearth_connector::proto::auth::{Proof, Purpose};
use hearth_connector::proto::frame::{self, FRAME_HEADER_BYTES, FrameHeader};
use hearth_connector::proto::header::{BlockHeader, Generation, HEADER_BYTES, Location};
use hearth_connector::proto::key::{BlockKey, KeyChain};
use hearth_connector::proto::tenant::{TenantName, TenantSecret};
use hearth_connector::proto::v1::{self, reply, request};
use hearth_connector::proto::version::PROTOCOL;
use hearth_connector::{Store, StoreConfig};
use hearth_transfer::{Access, Region, send_all_with_fds};

pub(crate) const CHALLENGE: &[u8] = b"who are you?";
/// A region that no node here has.
pub(crate) const NO_REGION: u32 = u32::MAX;
/// Bytes of one slot.
pub(crate) fn slot_bytes() -> usize {
    HEADER_BYTES + payload_bytes()
}

/// Time that any step may take on a loaded machine.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) listener: UnixListener,
    pub(crate) memory: Region,
}

impl Node {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("s")).expect("a socket");
        let memory = Region::shared("scripted node", 8 * slot_bytes()).expect("memory");
        Self { dir, listener, memory }
    }

    pub(crate) fn config(&self) -> StoreConfig {
        let socket = self.dir.path().join("s");
        StoreConfig::new(Some(socket), tenant(), secret(), conformance::identity(), "engine")
    }

    /// A client and its connection, with the session open.
    pub(crate) fn session(&self) -> (Store, Conn) {
        let store = Store::open(self.config());
        let conn = self.accept();
        assert!(store.wait_ready(soon()).is_connected());
        (store, conn)
    }

    /// The next connection, greeted.
    pub(crate) fn greet(&self) -> Conn {
        let (stream, _) = self.listener.accept().expect("a client");
        let mut conn = Conn { stream };
        conn.send(&greeting());
        conn
    }

    /// The next connection, with its session open.
    pub(crate) fn accept(&self) -> Conn {
        let mut conn = self.greet();
        let hello = conn.hello();
        conn.welcome(hello, self.welcome(), vec![self.fd()]);
        conn
    }

    pub(crate) fn welcome(&self) -> v1::Welcome {
        let regions = vec![named(&self.memory)];
        v1::Welcome { session: 1, regions, payload_bytes: payload_bytes() as u64 }
    }

    fn region(&self) -> u32 {
        named(&self.memory).id
    }

    pub(crate) fn fd(&self) -> OwnedFd {
        fd_of(&self.memory)
    }

    /// Puts a block into slot `slot`: its header, and the payload that belongs to its key.
    pub(crate) fn put(&self, slot: usize, header: &BlockHeader) {
        self.write(slot * slot_bytes(), &header.encode()[..]);
        self.write(slot * slot_bytes() + HEADER_BYTES, &conformance::payload(&header.key));
    }

    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        let window = self.memory.slice(at..at + bytes.len()).expect("inside");
        window.copy_from(bytes).expect("own memory");
    }

    pub(crate) fn read(&self, at: usize, len: usize) -> Vec<u8> {
        self.memory.slice(at..at + len).expect("inside").to_vec()
    }

    /// A lease on blocks in slots 0.. of this generation.
    pub(crate) fn acquired(&self, lease: u64, blocks: usize, generation: u64) -> v1::Acquired {
        v1::Acquired {
            lease,
            region: vec![self.region(); blocks],
            offset: (0..blocks).map(|slot| (slot * slot_bytes()) as u64).collect(),
            generation: vec![generation; blocks],
            tier: vec![v1::Tier::Pinned.into(); blocks],
            miss: v1::MissReason::MissAbsent.into(),
        }
    }

    /// Slots 0.. for blocks `first..first + blocks`.
    pub(crate) fn reserved(&self, reservation: u64, first: u32, blocks: u32) -> v1::Reserved {
        v1::Reserved {
            reservation,
            index: (first..first + blocks).collect(),
            region: vec![self.region(); blocks as usize],
            offset: (0..blocks as usize).map(|slot| (slot * slot_bytes()) as u64).collect(),
            generation: vec![9; blocks as usize],
            refused: 0,
        }
    }
}

/// The node's end of a connection.
pub(crate) struct Conn {
    pub(crate) stream: UnixStream,
}

impl Conn {
    pub(crate) fn send<M: prost::Message>(&mut self, message: &M) {
        self.send_with(message, &[]);
    }

    pub(crate) fn send_with<M: prost::Message>(&mut self, message: &M, fds: &[OwnedFd]) {
        let bytes = frame::encode(message, fds.len()).expect("within limits");
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        send_all_with_fds(&self.stream, &bytes, &fds).expect("the client is there");
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        send_all_with_fds(&self.stream, bytes, &[]).expect("the client is there");
    }

    pub(crate) fn welcome(&mut self, hello: v1::Request, welcome: v1::Welcome, fds: Vec<OwnedFd>) {
        let reply = v1::Reply { id: hello.id, result: Some(reply::Result::Welcome(welcome)) };
        self.send_with(&reply, &fds);
    }

    pub(crate) fn reply(&mut self, id: u64, result: reply::Result) {
        self.send(&v1::Reply { id, result: Some(result) });
    }

    pub(crate) fn refuse(&mut self, id: u64, error: v1::Error) {
        self.reply(id, reply::Result::Error(error));
    }

    /// The next request; `None` when the client has left.
    pub(crate) fn receive(&mut self) -> Option<v1::Request> {
        self.stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let mut head = [0; FRAME_HEADER_BYTES];
        match self.stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no request came"),
            Err(_left) => return None,
        }
        let mut body = vec![0; FrameHeader::decode(head).expect("a frame").body_bytes];
        self.stream.read_exact(&mut body).expect("a whole frame");
        Some(frame::decode(&body).expect("a request"))
    }

    pub(crate) fn next(&mut self) -> (u64, request::Op) {
        let request = self.receive().expect("the client is there");
        (request.id, request.op.expect("a request asks something"))
    }

    pub(crate) fn hello(&mut self) -> v1::Request {
        let request = self.receive().expect("the client is there");
        let Some(request::Op::Hello(hello)) = &request.op else { panic!("{request:?}") };
        assert!(Proof::new(&secret(), Purpose::Session, CHALLENGE).accepts(&hello.proof));
        assert_eq!((hello.tenant.as_str(), hello.holder.as_str()), ("default", "engine"));
        assert_eq!(hello.identity, Some(v1::Identity::from(&conformance::identity())));
        request
    }

    /// The client hangs up because of what it was told.
    pub(crate) fn hung_up(mut self) {
        while self.receive().is_some() {}
    }
}

pub(crate) fn greeting() -> v1::Greeting {
    v1::Greeting {
        version_major: PROTOCOL.major,
        version_minor: PROTOCOL.minor,
        challenge: CHALLENGE.to_vec(),
        node: "scripted".into(),
        incarnation: 1,
    }
}

/// A region as a welcome names it.
pub(crate) fn named(region: &Region) -> v1::Region {
    let id = u32::try_from(region.id().0).expect("few");
    v1::Region { id, generation: region.generation().0, bytes: region.len() as u64 }
}

pub(crate) fn fd_of(region: &Region) -> OwnedFd {
    region.export(Access::ReadWrite).expect("shared").fd.expect("a descriptor")
}

pub(crate) fn tenant() -> TenantName {
    "default".parse().expect("a name")
}

pub(crate) fn secret() -> TenantSecret {
    TenantSecret::from_bytes([7; 32])
}

pub(crate) fn chain(blocks: u32) -> Vec<BlockKey> {
    let tokens: Vec<u32> = (0..16 * blocks).collect();
    KeyChain::new(&secret(), &conformance::identity()).keys(b"", &tokens)
}

/// The right header of a block in a slot of this generation.
pub(crate) fn header(key: BlockKey, generation: u64) -> BlockHeader {
    let payload = conformance::payload(&key);
    let range = payload.len() / 4;
    BlockHeader {
        key,
        fingerprint: conformance::identity().fingerprint(),
        tenant: tenant().id(),
        parent: None,
        depth: 0,
        generation: Generation(generation),
        location: Location::MEMORY,
        payload_bytes: payload.len() as u64,
        range_bytes: u32::try_from(range).expect("small"),
        range_crcs: payload.chunks(range).map(crc32fast::hash).collect(),
    }
}
