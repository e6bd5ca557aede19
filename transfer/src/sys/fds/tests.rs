use std::io::{Read, Seek, Write};
use std::os::unix::net::UnixStream;

use super::*;

fn file(content: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(content).expect("writes");
    file.rewind().expect("rewinds");
    file.into()
}

fn content(fd: OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::fs::File::from(fd).read_to_end(&mut bytes).expect("reads");
    bytes
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc is mounted").count()
}

#[test]
fn descriptors_arrive_in_order_and_close_on_exec() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let files = [file(b"first"), file(b"second")];
    let sent = send_with_fds(&ours, b"hello", &[files[0].as_fd(), files[1].as_fd()]).expect("sends");
    assert_eq!(sent, 5);
    let mut buffer = [0; 16];
    let (received, fds) = recv_with_fds(&theirs, &mut buffer).expect("receives");
    assert_eq!(&buffer[..received], b"hello");
    for fd in &fds {
        let flags = rustix::io::fcntl_getfd(fd).expect("flags");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
    let contents: Vec<Vec<u8>> = fds.into_iter().map(content).collect();
    assert_eq!(contents, [b"first".to_vec(), b"second".to_vec()]);
}

#[test]
fn a_closed_peer_and_a_full_socket_are_told_apart() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    theirs.set_nonblocking(true).expect("sets");
    let mut buffer = [0; 16];
    let nothing = recv_with_fds(&theirs, &mut buffer).expect_err("nothing was sent");
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    drop(ours);
    let (received, fds) = recv_with_fds(&theirs, &mut buffer).expect("the end of the stream");
    assert_eq!((received, fds.len()), (0, 0));
    let broken = send_with_fds(&theirs, b"x", &[]).expect_err("nobody is there, and no signal either");
    assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn the_bound_holds_on_both_sides() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let one = file(b"");
    let many = [one.as_fd(); FDS_PER_MESSAGE_MAX + 1];
    let error = send_with_fds(&ours, b"x", &many).expect_err("too many");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    let error = send_with_fds(&ours, b"", &many[..1]).expect_err("no byte carries it");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);

    // A peer that keeps to no bound.
    let crowd = [one.as_fd(); 100];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&crowd)));
    sendmsg(&ours, &[IoSlice::new(b"x")], &mut control, SendFlags::NOSIGNAL).expect("sends");
    let before = open_fds();
    let error = recv_with_fds(&theirs, &mut [0; 16]).expect_err("refused");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    // Other tests of this process open and close descriptors meanwhile; a leak would be a crowd.
    assert!(open_fds() < before + FDS_PER_MESSAGE_MAX);
}
