//! Messages on a stream: a header of eight bytes, then a protobuf body.
//!
//! `H`, `F`, the number of descriptors that travel with the frame, zero, then the body's length as a little-endian
//! `u32`. The length is checked against [`FRAME_BYTES_MAX`] before memory is taken.

use prost::Message;
use thiserror::Error;

use crate::limit::{FRAME_BYTES_MAX, REGIONS_MAX};

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 8;

const MAGIC: [u8; 2] = *b"HF";

/// What a frame's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the body.
    pub body_bytes: usize,
    /// Descriptors sent with the first byte of the frame.
    pub descriptors: usize,
}

/// The peer does not speak this protocol, or is broken: close the connection.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The stream does not start with a frame.
    #[error("the peer does not speak the Hearth local protocol")]
    Magic,
    /// The body is over the limit.
    #[error("a frame of {0} bytes is over the limit of {FRAME_BYTES_MAX}")]
    Length(usize),
    /// More descriptors than a message may carry.
    #[error("a frame with {0} descriptors is over the limit of {REGIONS_MAX}")]
    Descriptors(usize),
    /// The body is no message of the expected type.
    #[error("a frame's body cannot be decoded: {0}")]
    Body(#[from] prost::DecodeError),
}

impl FrameHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// When it is none, or over a limit.
    pub fn decode(bytes: [u8; FRAME_HEADER_BYTES]) -> Result<Self, FrameError> {
        let [m0, m1, descriptors, zero, len @ ..] = bytes;
        if [m0, m1] != MAGIC || zero != 0 {
            return Err(FrameError::Magic);
        }
        let body_bytes = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
        if body_bytes > FRAME_BYTES_MAX {
            return Err(FrameError::Length(body_bytes));
        }
        let descriptors = usize::from(descriptors);
        if descriptors > REGIONS_MAX {
            return Err(FrameError::Descriptors(descriptors));
        }
        Ok(Self { body_bytes, descriptors })
    }
}

/// A whole frame: header and body. `descriptors` is how many will travel beside it.
///
/// # Errors
/// When the message or the number of descriptors is over its limit.
pub fn encode<M: Message>(message: &M, descriptors: usize) -> Result<Vec<u8>, FrameError> {
    let body = message.encoded_len();
    if body > FRAME_BYTES_MAX {
        return Err(FrameError::Length(body));
    }
    let count = u8::try_from(descriptors).ok().filter(|_| descriptors <= REGIONS_MAX);
    let count = count.ok_or(FrameError::Descriptors(descriptors))?;
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + body);
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&[count, 0]);
    frame.extend_from_slice(&u32::try_from(body).expect("under the limit").to_le_bytes());
    message.encode(&mut frame).expect("a Vec grows as needed");
    Ok(frame)
}

/// Reads a frame's body.
///
/// # Errors
/// When it is no message of type `M`.
pub fn decode<M: Message + Default>(body: &[u8]) -> Result<M, FrameError> {
    Ok(M::decode(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;
    use proptest::prelude::*;

    #[test]
    fn frames_round_trip() {
        let request = v1::Request {
            id: 7,
            deadline_ms: 50,
            op: Some(v1::request::Op::Match(v1::Match { keys: vec![1; 64] })),
        };
        let frame = encode(&request, 2).unwrap();
        let header = FrameHeader::decode(frame[..FRAME_HEADER_BYTES].try_into().unwrap()).unwrap();
        assert_eq!(header, FrameHeader { body_bytes: frame.len() - FRAME_HEADER_BYTES, descriptors: 2 });
        assert_eq!(decode::<v1::Request>(&frame[FRAME_HEADER_BYTES..]), Ok(request));
    }

    #[test]
    fn limits_hold_before_memory_is_taken() {
        let huge = [b'H', b'F', 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(FrameHeader::decode(huge), Err(FrameError::Length(u32::MAX as usize)));
        assert_eq!(FrameHeader::decode(*b"GET / HT"), Err(FrameError::Magic));
        assert_eq!(FrameHeader::decode([b'H', b'F', 17, 0, 0, 0, 0, 0]), Err(FrameError::Descriptors(17)));
        assert!(encode(&v1::Done {}, 17).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode::<v1::Request>(&body);
            let _ = decode::<v1::Reply>(&body);
            let _ = decode::<v1::FeedMessage>(&body);
        }
    }
}
