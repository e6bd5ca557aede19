//! Bytes and descriptors together over a unix socket.
//!
//! Both calls make one system call and behave like `write` and `read`: they may move fewer bytes than
//! asked, and on a non-blocking socket they return `WouldBlock`. Descriptors travel with the first byte
//! of their send and surface in the receive that takes that byte.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::error::Error;

/// Most descriptors one message may carry.
pub const FDS_PER_MESSAGE_MAX: usize = 16;

/// Sends `bytes` with `fds`, in one call, and returns how many bytes the socket took. When that is more
/// than none, the descriptors went with them; send the rest without them.
///
/// Never raises SIGPIPE.
///
/// # Errors
/// The socket's own errors; `InvalidInput` for more than [`FDS_PER_MESSAGE_MAX`] descriptors, or for
/// descriptors without a byte to carry them.
pub fn send_with_fds(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.len() > FDS_PER_MESSAGE_MAX {
        return Err(invalid(Error::TooManyDescriptors { max: FDS_PER_MESSAGE_MAX }));
    }
    if bytes.is_empty() && !fds.is_empty() {
        return Err(invalid(Error::Empty));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(fds));
        assert!(fits, "the control buffer holds the largest message allowed");
    }
    let sent = rustix::io::retry_on_intr(|| {
        sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(sent)
}

/// Sends all of `bytes`, the descriptors with the first of them. Blocks as long as the socket does; not
/// for non-blocking sockets, where a `WouldBlock` in the middle would lose count of what was sent.
///
/// # Errors
/// As [`send_with_fds`].
pub fn send_all_with_fds(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut sent = send_with_fds(socket.as_fd(), bytes, fds)?;
    while sent < bytes.len() {
        sent += send_with_fds(socket.as_fd(), &bytes[sent..], &[])?;
    }
    Ok(())
}

/// Receives up to `buffer.len()` bytes and the descriptors that came with them, close-on-exec. No bytes
/// means that the peer has closed its side.
///
/// # Errors
/// The socket's own errors; `InvalidData` when the peer sent more than [`FDS_PER_MESSAGE_MAX`]
/// descriptors at once, in which case all of them are closed.
pub fn recv_with_fds(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(socket.as_fd(), &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    // Descriptors beyond the control buffer were closed by the kernel; the rest close as `fds` drops.
    if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > FDS_PER_MESSAGE_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            Error::TooManyDescriptors { max: FDS_PER_MESSAGE_MAX },
        ));
    }
    Ok((received.bytes, fds))
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

#[cfg(test)]
mod tests;
