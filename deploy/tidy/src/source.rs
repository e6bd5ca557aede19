//! One parsed Rust file.

use std::ops::RangeInclusive;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A file that is not Rust.
#[derive(Debug, thiserror::Error)]
#[error("{path}:{line}: not parsed as Rust ({cause}); the tidy checks need a file that compiles")]
pub struct SourceError {
    path: String,
    line: usize,
    cause: syn::Error,
}

/// One Rust file: its path, its text and its syntax tree.
#[derive(Debug)]
pub struct Source {
    /// Relative to the workspace root, with `/`.
    pub path: String,
    /// The text as it stands on disk.
    pub text: String,
    /// The syntax tree; spans count lines from 1.
    pub tree: syn::File,
    test_lines: Vec<RangeInclusive<usize>>,
}

impl Source {
    /// Parses a file.
    ///
    /// # Errors
    /// When the text is not Rust.
    pub fn parse(path: &str, text: &str) -> Result<Self, SourceError> {
        let tree = syn::parse_file(text).map_err(|cause| SourceError {
            path: path.to_owned(),
            line: cause.span().start().line,
            cause,
        })?;
        let mut found = TestItems::default();
        found.visit_file(&tree);
        Ok(Self { path: path.to_owned(), text: text.to_owned(), tree, test_lines: found.lines })
    }

    /// Whether the whole file is test code: below a `tests` folder, named `tests.rs`, or part of a
    /// conformance suite, which is compiled for users but runs in tests alone.
    pub fn is_test_file(&self) -> bool {
        let parts = ["tests", "tests.rs", "conformance", "conformance.rs"];
        self.path.split('/').any(|part| parts.contains(&part))
    }

    /// Whether this line is test code.
    pub fn is_test_line(&self, line: usize) -> bool {
        self.is_test_file() || self.test_lines.iter().any(|range| range.contains(&line))
    }

    /// Lines that are not test code; 0 for a test file.
    pub fn lines_without_tests(&self) -> usize {
        (1..=self.text.lines().count()).filter(|line| !self.is_test_line(*line)).count()
    }
}

/// Lines of items under `#[cfg(test)]` or `#[test]`.
#[derive(Default)]
struct TestItems {
    lines: Vec<RangeInclusive<usize>>,
}

impl TestItems {
    fn note(&mut self, attrs: &[syn::Attribute], item: &impl Spanned) -> bool {
        let test = attrs.iter().any(is_test_attribute);
        if test {
            let span = item.span();
            self.lines.push(span.start().line..=span.end().line);
        }
        test
    }
}

impl<'ast> Visit<'ast> for TestItems {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !self.note(&item.attrs, item) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !self.note(&item.attrs, item) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if !self.note(&item.attrs, item) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !self.note(&item.attrs, item) {
            visit::visit_impl_item_fn(self, item);
        }
    }
}

fn is_test_attribute(attribute: &syn::Attribute) -> bool {
    match &attribute.meta {
        syn::Meta::Path(path) => path.segments.last().is_some_and(|segment| segment.ident == "test"),
        syn::Meta::List(list) if list.path.is_ident("cfg") => {
            let inside = list.tokens.to_string();
            inside == "test" || inside.starts_with("all (test") || inside.starts_with("any (test")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "fn a() {}\n\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn t() {}\n}\n";

    #[test]
    fn test_modules_are_not_counted() {
        let source = Source::parse("x/src/a.rs", SAMPLE).unwrap();
        assert_eq!(source.lines_without_tests(), 2);
        assert!(source.is_test_line(6));
        assert!(!source.is_test_line(1));
    }

    #[test]
    fn a_test_file_is_test_code_throughout() {
        let source = Source::parse("x/tests/a.rs", SAMPLE).unwrap();
        assert_eq!(source.lines_without_tests(), 0);
        assert!(Source::parse("x/src/a/tests.rs", SAMPLE).unwrap().is_test_file());
        assert!(!Source::parse("x/src/attests.rs", SAMPLE).unwrap().is_test_file());
    }

    #[test]
    fn what_is_not_rust_is_an_error_with_a_line() {
        let error = Source::parse("a.rs", "fn a() {\n    let;\n}\n").unwrap_err();
        assert!(error.to_string().starts_with("a.rs:2: "), "{error}");
    }
}
