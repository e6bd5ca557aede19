//! Server-sent events, taken from a stream of bytes that is cut anywhere.

/// Most bytes of one event.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// The stream is no event stream of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SseError {
    /// An event without an end.
    #[error("the server sent an event of more than {EVENT_BYTES_MAX} bytes")]
    TooLong,
    /// Not text.
    #[error("the server sent an event that is not UTF-8")]
    NotText,
}

/// Splits bytes into the data of events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    line: Vec<u8>,
    data: String,
    has_data: bool,
    after_return: bool,
}

impl Events {
    /// Takes the next bytes and gives the events they complete, in order.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<String>, SseError> {
        let mut events = Vec::new();
        for &byte in bytes {
            // A line ends with \n, \r or both.
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => events.extend(self.end_line()?),
                _ if self.line.len() + self.data.len() >= EVENT_BYTES_MAX => return Err(SseError::TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Result<Option<String>, SseError> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return Ok(std::mem::take(&mut self.has_data).then_some(data));
        }
        let line = String::from_utf8(line).map_err(|_| SseError::NotText)?;
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        // Other fields and comments (an empty field name) carry nothing for us.
        if field == "data" {
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push('\n');
            }
            self.data.push_str(value.strip_prefix(' ').unwrap_or(value));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = ": hello\n\ndata: {\"a\":1}\n\nevent: x\ndata: zwei\r\ndata:  drei é\r\n\r\nid: 7\n\ndata\n\ndata: [DONE]\n\n";

    fn expected() -> Vec<String> {
        ["{\"a\":1}", "zwei\n drei é", "", "[DONE]"].map(str::to_owned).to_vec()
    }

    #[test]
    fn events_come_whole() {
        assert_eq!(Events::default().feed(STREAM.as_bytes()), Ok(expected()));
    }

    #[test]
    fn an_unfinished_event_is_held_back() {
        let mut events = Events::default();
        assert_eq!(events.feed(b"data: a\n"), Ok(vec![]));
        assert_eq!(events.feed(b"\n"), Ok(vec!["a".to_owned()]));
    }

    #[test]
    fn endless_and_binary_events_are_refused() {
        assert_eq!(Events::default().feed(&vec![b'x'; EVENT_BYTES_MAX + 1]), Err(SseError::TooLong));
        assert_eq!(Events::default().feed(b"data: \xff\n"), Err(SseError::NotText));
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(cuts in proptest::collection::vec(0..STREAM.len(), 0..8)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let mut events = Events::default();
            let mut got = Vec::new();
            for pair in cuts.windows(2) {
                got.extend(events.feed(&STREAM.as_bytes()[pair[0]..pair[1]]).unwrap());
            }
            prop_assert_eq!(got, expected());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(Events::default().feed(&bytes));
        }
    }
}
