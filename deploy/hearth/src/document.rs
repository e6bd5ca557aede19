//! The text that this program carries: the beginning of Newton's *Opticks* (1730), public domain.

/// All of it: what the generated checkpoint's tokenizer is trained on.
pub(crate) const OPTICKS: &str = include_str!("../data/opticks.txt");
/// What messages call it.
pub(crate) const TITLE: &str = "Newton, Opticks (1730)";

/// Users and what they ask about the document.
pub(crate) const QUESTIONS: [(&str, &str); 3] = [
    ("ada", "What does Newton mean by the Rays of Light, and why does he begin with them?"),
    ("ben", "Which Axiom joins the Sine of Incidence to the Sine of Refraction?"),
    ("eve", "How does the Picture of an Object come to be painted on the bottom of the Eye?"),
];

/// The first paragraphs of the text, `bytes` at most, whole paragraphs only; at least one.
pub(crate) fn excerpt(text: &str, bytes: usize) -> &str {
    let mut end = 0;
    for (at, _) in text.match_indices("\n\n") {
        if at > bytes && end > 0 {
            return &text[..end];
        }
        end = at;
    }
    if text.len() <= bytes || end == 0 { text } else { &text[..end] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_end_with_a_paragraph() {
        let text = "one\n\ntwo two\n\nthree";
        assert_eq!(excerpt(text, 4), "one");
        assert_eq!(excerpt(text, 14), "one\n\ntwo two");
        assert_eq!(excerpt(text, 1), "one");
        assert_eq!(excerpt(text, 100), text);
        assert_eq!(excerpt("word", 1), "word");
    }

    #[test]
    fn the_carried_text_is_long_enough_and_plain() {
        assert!((120_000..150_000).contains(&OPTICKS.len()));
        assert!(OPTICKS.starts_with("THE FIRST BOOK OF OPTICKS"));
        assert!(!OPTICKS.contains("Produced by") && !OPTICKS.contains("Gutenberg"));
    }
}
