//! Lines per file and per function, held by a ratchet.
//!
//! A function over the limit must stand in `deploy/tidy/ratchet.txt` with its exact length, so that
//! it can only shrink; a shorter one is taken off the list.

use std::collections::BTreeMap;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::{Finding, Source};

/// Most lines of a file, test code not counted.
pub const FILE_LINES_MAX: usize = 1_000;
/// From here on a file is worth the question whether it has one job.
pub const FILE_LINES_ASK: usize = 500;
/// Most lines of a function, from its signature to its closing brace.
pub const FUNCTION_LINES_MAX: usize = 70;
/// Where the exceptions are listed.
pub const RATCHET: &str = "deploy/tidy/ratchet.txt";

/// One function and its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// File and name, `a/b.rs Type::name`: what the ratchet lists.
    pub place: String,
    /// Line of its signature.
    pub line: usize,
    /// Lines from signature to closing brace.
    pub lines: usize,
}

/// Files with more than `lines_max` lines, test code not counted.
pub fn long_files(sources: &[Source], lines_max: usize) -> Vec<Finding> {
    sources
        .iter()
        .map(|source| (source, source.lines_without_tests()))
        .filter(|(_, lines)| *lines > lines_max)
        .map(|(source, lines)| {
            Finding::of(
                &source.path,
                format!("{lines} lines, more than {lines_max}: split it by owner of state"),
            )
        })
        .collect()
}

/// Every function of a file, with its length.
pub fn functions(source: &Source) -> Vec<Function> {
    let mut lengths = Lengths { path: &source.path, within: Vec::new(), found: Vec::new() };
    lengths.visit_file(&source.tree);
    lengths.found
}

/// Functions over the limit that the ratchet does not list at their length, and entries of the
/// ratchet that no longer hold.
pub fn against_ratchet(functions: &[Function], ratchet: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut listed = BTreeMap::new();
    for (at, line) in
        ratchet.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty())
    {
        match line.split_once(' ').and_then(|(lines, place)| Some((place, lines.parse::<usize>().ok()?))) {
            Some((place, lines)) => {
                listed.insert(place, lines);
            }
            None => findings.push(Finding::at(RATCHET, at + 1, "an entry is `LINES FILE FUNCTION`")),
        }
    }
    let long: BTreeMap<&str, &Function> =
        functions.iter().filter(|f| f.lines > FUNCTION_LINES_MAX).map(|f| (f.place.as_str(), f)).collect();
    for (place, function) in &long {
        let file = place.split(' ').next().unwrap_or(place);
        match listed.get(place) {
            Some(lines) if *lines == function.lines => {}
            Some(lines) if *lines > function.lines => findings.push(Finding::at(
                file,
                function.line,
                format!("{place} shrank to {} lines: lower its entry in {RATCHET}", function.lines),
            )),
            _ => findings.push(Finding::at(
                file,
                function.line,
                format!("{place} has {} lines, more than {FUNCTION_LINES_MAX}: split it", function.lines),
            )),
        }
    }
    for place in listed.keys().filter(|place| !long.contains_key(*place)) {
        findings.push(Finding::of(RATCHET, format!("{place} is no longer too long: remove its entry")));
    }
    findings
}

struct Lengths<'a> {
    path: &'a str,
    within: Vec<String>,
    found: Vec<Function>,
}

impl Lengths<'_> {
    fn note(&mut self, signature: &syn::Signature, end: &syn::Block) {
        let line = signature.span().start().line;
        let mut name = self.within.join("::");
        if !name.is_empty() {
            name.push_str("::");
        }
        let place = format!("{} {name}{}", self.path, signature.ident);
        self.found.push(Function { place, line, lines: end.span().end().line - line + 1 });
    }

    fn inside(&mut self, name: String, visit: impl FnOnce(&mut Self)) {
        self.within.push(name);
        visit(self);
        self.within.pop();
    }
}

impl<'ast> Visit<'ast> for Lengths<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.note(&item.sig, &item.block);
        self.inside(item.sig.ident.to_string(), |this| visit::visit_item_fn(this, item));
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.note(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.note(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let name = match &*item.self_ty {
            syn::Type::Path(path) => {
                path.path.segments.last().map(|s| s.ident.to_string()).unwrap_or_default()
            }
            _ => "impl".to_owned(),
        };
        self.inside(name, |this| visit::visit_item_impl(this, item));
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.inside(item.ident.to_string(), |this| visit::visit_item_trait(this, item));
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.inside(item.ident.to_string(), |this| visit::visit_item_mod(this, item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long_function(name: &str, lines: usize) -> String {
        format!("fn {name}() {{\n{}}}\n", "    step();\n".repeat(lines - 2))
    }

    fn of(text: &str) -> Vec<Function> {
        functions(&Source::parse("a.rs", text).unwrap())
    }

    #[test]
    fn lengths_are_counted_from_signature_to_brace() {
        let found = of("/// Doc.\n#[inline]\nfn a() {\n}\nimpl B {\n    fn c() {}\n}\n");
        assert_eq!(found[0], Function { place: "a.rs a".to_owned(), line: 3, lines: 2 });
        assert_eq!(found[1], Function { place: "a.rs B::c".to_owned(), line: 6, lines: 1 });
    }

    #[test]
    fn crossing_the_line_is_found() {
        assert_eq!(against_ratchet(&of(&long_function("f", FUNCTION_LINES_MAX)), ""), []);
        assert_eq!(against_ratchet(&of(&long_function("f", FUNCTION_LINES_MAX + 1)), "").len(), 1);
    }

    #[test]
    fn the_ratchet_only_shrinks() {
        let functions = of(&long_function("f", 90));
        assert_eq!(against_ratchet(&functions, "# why\n90 a.rs f\n"), []);
        assert!(against_ratchet(&functions, "95 a.rs f\n")[0].what.contains("lower its entry"));
        assert!(against_ratchet(&functions, "80 a.rs f\n")[0].what.contains("split it"));
        assert!(against_ratchet(&[], "80 a.rs f\n")[0].what.contains("remove its entry"));
        assert_eq!(against_ratchet(&[], "eighty a.rs f\n").len(), 1);
    }

    #[test]
    fn a_long_file_is_found_and_its_tests_are_not_counted() {
        let code = "fn f() {}\n".repeat(40);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "    fn f() {}\n".repeat(40));
        let source = Source::parse("a.rs", &format!("{code}{tests}")).unwrap();
        let sources = [source];
        assert_eq!(long_files(&sources, 40), []);
        assert_eq!(long_files(&sources, 39).len(), 1);
    }
}
