//! Pieces against the whole: however a text is split into tokens, what is sent is the full text up to the
//! first stop string, in whole characters.

use std::path::Path;

use hearth_prompt::{Specials, Tokenizer};
use proptest::prelude::*;

use super::*;

/// A vocabulary of byte strings, as byte-level tokenizers have.
fn lossy(vocabulary: &[Vec<u8>]) -> impl Fn(&[u32]) -> String + '_ {
    |tokens| {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&t| vocabulary[t as usize].iter().copied()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// All pieces joined, and whether a stop string ended them.
fn stream(tokens: &[u32], stops: &[&str], decode: impl Fn(&[u32]) -> String) -> (String, bool) {
    let mut text = CompletionText::new(stops.iter().map(|&s| s.to_owned()).collect());
    let mut sent = String::new();
    for &token in tokens {
        let piece = text.push(token, &decode);
        sent.push_str(&piece.text);
        if piece.stopped {
            return (sent, true);
        }
    }
    let last = text.finish(&decode);
    sent.push_str(&last.text);
    (sent, last.stopped)
}

/// The definition: of all occurrences the one that ends first, and of those the longest, cuts the text.
fn cut(text: &str, stops: &[&str]) -> (String, bool) {
    let mut first: Option<(usize, usize)> = None;
    for stop in stops {
        for start in (0..text.len()).filter(|&i| text.is_char_boundary(i) && text[i..].starts_with(stop)) {
            let found = (start + stop.len(), start);
            first = Some(first.map_or(found, |first| first.min(found)));
        }
    }
    match first {
        Some((_, start)) => (text[..start].to_owned(), true),
        None => (text.to_owned(), false),
    }
}

/// Splits bytes at the given places into a vocabulary of one token each.
fn split(bytes: &[u8], lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut pieces = vec![];
    let mut rest = bytes;
    for &length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at(length.min(rest.len()));
        pieces.push(piece.to_vec());
        rest = after;
    }
    pieces
}

fn all(pieces: &[Vec<u8>]) -> Vec<u32> {
    (0..).take(pieces.len()).collect()
}

proptest! {
    #[test]
    fn any_split_gives_the_text_up_to_the_first_stop(
        text in "[abc€😀]{0,120}",
        lengths in prop::collection::vec(1usize..7, 1..20),
        stops in prop::collection::vec("[abc€]{1,4}", 0..4),
    ) {
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let pieces = split(text.as_bytes(), &lengths);
        prop_assert_eq!(stream(&all(&pieces), &stops, lossy(&pieces)), cut(&text, &stops));
    }

    #[test]
    fn bytes_that_are_no_text_come_out_as_the_whole_would(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x80u8..0xc0, 0xe0u8..0xf5], 0..300),
        lengths in prop::collection::vec(1usize..5, 1..10),
    ) {
        let pieces = split(&bytes, &lengths);
        let whole = String::from_utf8_lossy(&bytes).into_owned();
        prop_assert_eq!(stream(&all(&pieces), &[], lossy(&pieces)), (whole, false));
    }

    #[test]
    fn pieces_are_never_broken_characters(text in "[a€😀é]{0,100}", lengths in prop::collection::vec(1usize..4, 1..10)) {
        let pieces = split(text.as_bytes(), &lengths);
        let mut completion = CompletionText::new(vec![]);
        for token in all(&pieces) {
            prop_assert!(!completion.push(token, lossy(&pieces)).text.contains(char::REPLACEMENT_CHARACTER));
        }
    }

    #[test]
    fn a_real_tokenizer_agrees_with_its_full_decode(tokens in prop::collection::vec(0u32..330, 0..200)) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cachesvc/prompt/tests/model");
        let tokenizer = Tokenizer::load(&dir).expect("the test model");
        let whole = tokenizer.decode(&tokens);
        for stops in [vec![], vec!["the"], vec!["e", "at"]] {
            prop_assert_eq!(stream(&tokens, &stops, |t| tokenizer.decode(t)), cut(&whole, &stops));
        }
    }
}

#[test]
fn a_character_split_over_tokens_comes_out_whole() {
    let pieces: Vec<Vec<u8>> = "😀".bytes().map(|b| vec![b]).collect();
    let mut text = CompletionText::new(vec![]);
    for token in 0..3 {
        assert_eq!(text.push(token, lossy(&pieces)).text, "");
    }
    assert_eq!(text.push(3, lossy(&pieces)).text, "😀");
}

#[test]
fn a_character_that_never_ends_comes_at_the_end() {
    let pieces = vec![b"a\xf0\x9f".to_vec()];
    let mut text = CompletionText::new(vec![]);
    assert_eq!(text.push(0, lossy(&pieces)).text, "a");
    assert_eq!(text.finish(lossy(&pieces)), Piece { text: "\u{FFFD}".to_owned(), stopped: false });
}

#[test]
fn text_is_held_only_while_it_may_be_a_stop() {
    let pieces: Vec<Vec<u8>> = ["x <", "/s", "y </s", ">z"].iter().map(|s| s.as_bytes().to_vec()).collect();
    let mut text = CompletionText::new(vec!["</s>".to_owned()]);
    let mut push = |token| text.push(token, lossy(&pieces));
    assert_eq!(push(0), Piece { text: "x ".to_owned(), stopped: false });
    assert_eq!(push(1), Piece { text: String::new(), stopped: false });
    assert_eq!(push(2), Piece { text: "</sy ".to_owned(), stopped: false });
    assert_eq!(push(3), Piece { text: String::new(), stopped: true });
    assert_eq!(push(0), Piece { text: String::new(), stopped: true });
}

#[test]
fn the_first_complete_stop_wins() {
    let pieces = vec![b"abcX".to_vec()];
    for (stops, expected) in [(["abcX", "bc"], "a"), (["bcX", "abcX"], ""), (["X", "q"], "abc")] {
        assert_eq!(stream(&[0], &stops, lossy(&pieces)), (expected.to_owned(), true), "{stops:?}");
    }
}

#[test]
fn a_space_before_a_word_is_kept() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cachesvc/prompt/tests/model");
    let tokenizer = Tokenizer::load(&dir).expect("the test model");
    let said = "hello there the cat — sat 😀 again ".repeat(20);
    let tokens = tokenizer.encode(&said, Specials::InText).expect("tokens");
    assert_eq!(stream(&tokens, &[], |t| tokenizer.decode(t)), (said, false));
}
