//! From tokens to text as it may be sent: whole characters only, and nothing that may yet turn out to
//! be the begin of a stop string.
//!
//! Pure: the tokenizer comes in as a function from tokens to text.

/// The text of one completion, piece by piece.
#[derive(Debug)]
pub struct CompletionText {
    detokenizer: Detokenizer,
    stops: StopScanner,
}

/// What a token added to the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// To be sent; often empty.
    pub text: String,
    /// Whether a stop string is complete. Nothing comes after this piece.
    pub stopped: bool,
}

impl CompletionText {
    /// `stops` are the texts that end the completion and are not part of it; none of them empty.
    pub fn new(stops: Vec<String>) -> Self {
        Self { detokenizer: Detokenizer::default(), stops: StopScanner::new(stops) }
    }

    /// Adds a token. `decode` gives the text of a run of tokens, with U+FFFD for bytes that are not
    /// UTF-8, always the same function for one completion.
    pub fn push(&mut self, token: u32, decode: impl Fn(&[u32]) -> String) -> Piece {
        let text = self.detokenizer.push(token, decode);
        self.stops.push(&text)
    }

    /// What was held back, once no further token comes.
    pub fn finish(&mut self, decode: impl Fn(&[u32]) -> String) -> Piece {
        let rest = self.detokenizer.finish(decode);
        let mut piece = self.stops.push(&rest);
        if !piece.stopped {
            piece.text.push_str(&self.stops.release());
        }
        piece
    }
}

/// Decodes a sliding window of the last tokens: what a token adds depends on those before it, in
/// characters split over tokens and in the spaces between words.
#[derive(Debug, Default)]
struct Detokenizer {
    window: Vec<u32>,
    /// How many bytes of the window's text were given out.
    given_bytes: usize,
}

/// The window is cut when it has reached this many tokens, so that a push costs the same for any text.
const WINDOW_TOKENS_MAX: usize = 48;
/// What stays of it then. A character has at most four tokens.
const WINDOW_TOKENS_KEPT: usize = 12;

impl Detokenizer {
    fn push(&mut self, token: u32, decode: impl Fn(&[u32]) -> String) -> String {
        self.window.push(token);
        let text = decode(&self.window);
        let piece = self.take(&text, settled_bytes(&text));
        if self.window.len() >= WINDOW_TOKENS_MAX {
            self.window.drain(..WINDOW_TOKENS_MAX - WINDOW_TOKENS_KEPT);
            self.given_bytes = settled_bytes(&decode(&self.window));
        }
        piece
    }

    fn finish(&mut self, decode: impl Fn(&[u32]) -> String) -> String {
        let text = decode(&self.window);
        self.take(&text, text.len())
    }

    /// The text between what was given out and `end`.
    fn take(&mut self, text: &str, end: usize) -> String {
        // A decoder may take back what it gave; then the rest begins at its next whole character.
        let start =
            (self.given_bytes..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
        self.given_bytes = self.given_bytes.max(end);
        text.get(start..end).unwrap_or_default().to_owned()
    }
}

/// How much of the text no further token can change: a replacement character at the end may stand for
/// the first bytes of a character whose rest is still to come.
fn settled_bytes(text: &str) -> usize {
    text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(text).len()
}

/// Looks for the stop string that is complete first, and holds back what may be the begin of one.
#[derive(Debug)]
struct StopScanner {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopScanner {
    fn new(stops: Vec<String>) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()), "checked when the request was parsed");
        Self { stops, held: String::new(), stopped: false }
    }

    fn push(&mut self, text: &str) -> Piece {
        if self.stopped {
            return Piece { text: String::new(), stopped: true };
        }
        self.held.push_str(text);
        if let Some(start) = self.first_stop() {
            self.held.truncate(start);
            self.stopped = true;
            return Piece { text: self.release(), stopped: true };
        }
        let kept = self.held.split_off(self.held.len() - self.held_back_bytes());
        Piece { text: std::mem::replace(&mut self.held, kept), stopped: false }
    }

    fn release(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop string that ends first begins; the longest of those that end together.
    fn first_stop(&self) -> Option<usize> {
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop.len())));
        found.min_by_key(|&(start, bytes)| (start + bytes, start)).map(|(start, _)| start)
    }

    /// The longest end of the held text that is the begin of a stop string.
    fn held_back_bytes(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let stop = stop.as_bytes();
            (1..stop.len()).rev().find(|&bytes| held.ends_with(&stop[..bytes])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
