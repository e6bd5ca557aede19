//! Marks of unfinished work, and words that have no place in the tree.

use crate::Finding;

/// Marks of unfinished work; spelled in two halves so that this file passes its own check.
const MARKS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
    concat!("db", "g!"),
    concat!("to", "do!"),
    concat!("unimple", "mented!"),
];

/// Where this tree happens to stand and how it came about are no concern of a reader.
const WORDS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("iss", "ue 2"), concat!("sub", "agent")];

/// Leftover marks in a text file.
pub fn leftovers(path: &str, text: &str) -> Vec<Finding> {
    search(text, |line| MARKS.iter().copied().find(|mark| has_word(line, mark)))
        .map(|(line, mark)| {
            Finding::at(path, line, format!("{mark} is left over: finish it or write it down for the reader"))
        })
        .collect()
}

/// Words that stay out of the tree.
pub fn forbidden_words(path: &str, text: &str) -> Vec<Finding> {
    search(text, |line| {
        let line = line.to_lowercase();
        WORDS.iter().copied().find(|word| has_word(&line, word))
    })
    .map(|(line, word)| {
        Finding::at(path, line, format!("{word:?} does not belong here: the project speaks of itself alone"))
    })
    .collect()
}

fn search<'a>(
    text: &'a str,
    find: impl Fn(&'a str) -> Option<&'static str> + 'a,
) -> impl Iterator<Item = (usize, &'static str)> + 'a {
    text.lines().enumerate().filter_map(move |(at, line)| Some((at + 1, find(line)?)))
}

/// Whether `word` stands in `line` with no letter, digit or underscore touching its ends.
fn has_word(line: &str, word: &str) -> bool {
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let open = !word.ends_with(joins) || !after.is_some_and(joins);
        !before.is_some_and(joins) && open
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mark_is_found_as_a_word() {
        for mark in MARKS {
            let found = leftovers("a.rs", &format!("ok\n// {mark}: later\n"));
            assert_eq!(found.iter().map(|finding| finding.line).collect::<Vec<_>>(), [2], "{mark}");
        }
    }

    #[test]
    fn marks_inside_longer_words_are_no_marks() {
        assert_eq!(leftovers("a.sh", concat!("mktemp -d x.XX", "XXXX\nPHA", "CKER\nmyto", "do!()\n")), []);
    }

    #[test]
    fn words_of_one_place_are_found_in_any_case() {
        for word in WORDS {
            let line = format!("see ({})", word.to_uppercase());
            assert_eq!(forbidden_words("a.md", &line).len(), 1, "{word}");
        }
        assert_eq!(forbidden_words("a.md", concat!("a frame", "wo", "rk/x and at/wo", "rk/there")), []);
    }
}
