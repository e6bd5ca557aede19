//! What may stand where, seen in the tokens of a file, macro bodies included.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};

use crate::{Finding, Source};

/// Files outside `sys` folders where `unsafe` may stand.
const UNSAFE_FILES: &[&str] = &["cachesvc/src/io/uring.rs"];

/// Files where a thread may sleep between two looks: what they wait for cannot wake them.
const POLLERS: &[(&str, &str)] = &[
    ("deploy/hearth/src/supervise.rs", "waits for several processes to end, within a grace"),
    ("cachesvc/src/io/uring.rs", "backs off while the kernel refuses operations"),
    ("benches/src/peer.rs", "waits for a foreign server to answer or to end, whichever is first"),
];

/// Names that stand for a queue without a bound.
const UNBOUNDED: &[&str] = &["unbounded_channel", "UnboundedSender", "UnboundedReceiver", "unbounded"];

/// `unsafe` outside the modules that are allowed to have it.
pub fn stray_unsafe(source: &Source) -> Vec<Finding> {
    if may_be_unsafe(&source.path) {
        return Vec::new();
    }
    idents(source)
        .filter(|(name, _)| name == "unsafe")
        .map(|(_, line)| {
            Finding::at(&source.path, line, "unsafe outside a sys module: give sys a safe function for it")
        })
        .collect()
}

fn may_be_unsafe(path: &str) -> bool {
    path.contains("/src/sys/") || path.ends_with("/src/sys.rs") || UNSAFE_FILES.contains(&path)
}

/// `unsafe { .. }` and `unsafe impl` without a `// SAFETY:` comment right above.
pub fn unexplained_unsafe(source: &Source) -> Vec<Finding> {
    let lines: Vec<&str> = source.text.lines().collect();
    let flat = flatten(source);
    flat.windows(2)
        .filter(|pair| pair[0].is("unsafe") && (pair[1].is("{") || pair[1].is("impl")))
        .map(|pair| pair[0].line)
        .filter(|line| !explained(&lines, *line))
        .map(|line| {
            Finding::at(
                &source.path,
                line,
                "needs `// SAFETY: ` above: which rule holds, and why it holds here",
            )
        })
        .collect()
}

/// Whether a SAFETY comment stands above the statement that this line belongs to.
fn explained(lines: &[&str], line: usize) -> bool {
    for above in lines[..line - 1].iter().rev().map(|text| text.trim()) {
        if above.starts_with("//") {
            if above.contains("SAFETY:") {
                return true;
            }
        } else if above.is_empty() || above.ends_with([';', '{', '}', ',']) {
            return false;
        }
    }
    false
}

/// Channels without a bound.
pub fn unbounded_queues(source: &Source) -> Vec<Finding> {
    let flat = flatten(source);
    let named = flat.iter().filter(|token| UNBOUNDED.iter().any(|name| token.is(name)));
    let without_limit = (0..flat.len())
        .filter(|at| flat[*at..].starts_with_texts(&["channel", "(", ")"]))
        .filter(|at| !flat[..*at].ends_with_texts(&["oneshot", ":", ":"]))
        .map(|at| &flat[at]);
    named
        .chain(without_limit)
        .map(|token| {
            Finding::at(&source.path, token.line, "a queue without a bound: give it a limit with a name")
        })
        .collect()
}

/// Blocking sleeps outside tests and the few files that have nothing else to wait on.
pub fn sleeps(source: &Source) -> Vec<Finding> {
    if POLLERS.iter().any(|(path, _)| *path == source.path) {
        return Vec::new();
    }
    flatten(source)
        .windows(4)
        .filter(|four| four.starts_with_texts(&["thread", ":", ":", "sleep"]))
        .map(|four| four[3].line)
        .filter(|line| !source.is_test_line(*line))
        .map(|line| {
            Finding::at(&source.path, line, "a sleeping thread: wait for the event itself, with a deadline")
        })
        .collect()
}

/// Tests that are ignored without a reason.
pub fn ignored_without_reason(source: &Source) -> Vec<Finding> {
    flatten(source)
        .windows(4)
        .filter(|four| four.starts_with_texts(&["#", "[", "ignore", "]"]))
        .map(|four| Finding::at(&source.path, four[0].line, "say why: #[ignore = \"reason\"]"))
        .collect()
}

/// Error types that a caller cannot act on: strings, and boxes outside build scripts.
pub fn blunt_errors(source: &Source) -> Vec<Finding> {
    let mut results = Results { lines: Vec::new() };
    results.visit_file(&source.tree);
    results
        .lines
        .into_iter()
        .filter(|(line, _)| !source.is_test_line(*line) && !source.path.ends_with("build.rs"))
        .map(|(line, kind)| {
            Finding::at(
                &source.path,
                line,
                format!("{kind} as an error: use an enum whose variants say what to do next"),
            )
        })
        .collect()
}

struct Results {
    lines: Vec<(usize, &'static str)>,
}

impl<'ast> Visit<'ast> for Results {
    fn visit_path_segment(&mut self, segment: &'ast syn::PathSegment) {
        if segment.ident == "Result"
            && let syn::PathArguments::AngleBracketed(arguments) = &segment.arguments
            && let Some(syn::GenericArgument::Type(error)) = arguments.args.iter().nth(1)
            && let Some(kind) = blunt(error)
        {
            self.lines.push((segment.ident.span().start().line, kind));
        }
        visit::visit_path_segment(self, segment);
    }
}

fn blunt(error: &syn::Type) -> Option<&'static str> {
    match error {
        syn::Type::Reference(reference) => match &*reference.elem {
            syn::Type::Path(path) if path.path.is_ident("str") => Some("&str"),
            _ => None,
        },
        syn::Type::Path(path) if path.path.is_ident("String") => Some("String"),
        syn::Type::Path(path) => {
            let last = path.path.segments.last()?;
            let syn::PathArguments::AngleBracketed(inside) = &last.arguments else { return None };
            let boxed = last.ident == "Box"
                && matches!(inside.args.first(), Some(syn::GenericArgument::Type(syn::Type::TraitObject(_))));
            boxed.then_some("Box<dyn Error>")
        }
        _ => None,
    }
}

/// One token with its line; a group is its opening and closing token.
struct Token {
    text: String,
    line: usize,
}

impl Token {
    fn is(&self, text: &str) -> bool {
        self.text == text
    }
}

/// Comparing tokens by their text.
trait Texts {
    fn starts_with_texts(&self, texts: &[&str]) -> bool;
    fn ends_with_texts(&self, texts: &[&str]) -> bool;
}

impl Texts for [Token] {
    fn starts_with_texts(&self, texts: &[&str]) -> bool {
        self.len() >= texts.len() && self.iter().zip(texts).all(|(token, text)| token.is(text))
    }

    fn ends_with_texts(&self, texts: &[&str]) -> bool {
        self.len() >= texts.len() && self[self.len() - texts.len()..].starts_with_texts(texts)
    }
}

/// Every word of a file that could name a crate.
pub fn words(source: &Source) -> impl Iterator<Item = String> {
    idents(source).map(|(word, _)| word)
}

fn idents(source: &Source) -> impl Iterator<Item = (String, usize)> {
    flatten(source).into_iter().map(|token| (token.text, token.line))
}

fn flatten(source: &Source) -> Vec<Token> {
    let mut flat = Vec::new();
    if let Ok(tokens) = source.text.parse::<TokenStream>() {
        flatten_into(tokens, &mut flat);
    }
    flat
}

fn flatten_into(tokens: TokenStream, flat: &mut Vec<Token>) {
    for tree in tokens {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                flat.push(Token { text: open.to_owned(), line });
                flatten_into(group.stream(), flat);
                flat.push(Token { text: close.to_owned(), line: group.span_close().start().line });
            }
            TokenTree::Ident(ident) => flat.push(Token { text: ident.to_string(), line }),
            TokenTree::Punct(punct) => flat.push(Token { text: punct.as_char().to_string(), line }),
            TokenTree::Literal(_) => flat.push(Token { text: String::new(), line }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source::parse(path, text).unwrap()
    }

    #[test]
    fn unsafe_stands_only_in_its_modules() {
        let text = "fn f() { let s = \"unsafe\"; m! { unsafe { g() } } }";
        assert_eq!(stray_unsafe(&source("engine/src/step.rs", text)).len(), 1);
        assert_eq!(stray_unsafe(&source("transfer/src/sys/shm.rs", text)), []);
        assert_eq!(stray_unsafe(&source("cachesvc/src/io/uring.rs", text)), []);
        assert_eq!(stray_unsafe(&source("a.rs", "#[unsafe(no_mangle)] pub fn f() {}")).len(), 1);
    }

    #[test]
    fn unsafe_has_its_reason_right_above() {
        let good = "fn f() {\n    // SAFETY: p is valid.\n    // It is ours.\n    let x =\n        unsafe { *p };\n}\n";
        assert_eq!(unexplained_unsafe(&source("a.rs", good)), []);
        let bad = "// SAFETY: of another one.\nfn f() {\n    let x = unsafe { *p };\n}\nunsafe impl Send for A {}\n";
        let lines: Vec<usize> = unexplained_unsafe(&source("a.rs", bad)).iter().map(|f| f.line).collect();
        assert_eq!(lines, [3, 5]);
    }

    #[test]
    fn queues_without_a_bound_are_found() {
        let text = "fn f() { let a = mpsc::channel(); let b = mpsc::channel(8); let c = unbounded_channel(); \
            let d = oneshot::channel(); }";
        assert_eq!(unbounded_queues(&source("a.rs", text)).len(), 2);
    }

    #[test]
    fn sleeps_are_found_outside_tests() {
        let text = "fn f() { std::thread::sleep(d); }\n#[test]\nfn t() { std::thread::sleep(d); }\n";
        assert_eq!(sleeps(&source("a.rs", text)).len(), 1);
        assert_eq!(sleeps(&source(POLLERS[0].0, text)), []);
    }

    #[test]
    fn ignoring_needs_a_reason() {
        let text = "#[ignore]\n#[test]\nfn a() {}\n#[ignore = \"needs a GPU\"]\n#[test]\nfn b() {}\n";
        assert_eq!(ignored_without_reason(&source("a.rs", text)).len(), 1);
    }

    #[test]
    fn errors_without_a_kind_are_found() {
        let text = "fn a() -> Result<u8, String> {}\nfn b() -> io::Result<u8> {}\n\
            fn c() -> Result<(), Box<dyn Error>> {}\nfn d() -> Result<u8, Kind> {}\nfn e() -> Result<u8, &'static str> {}\n";
        let lines: Vec<usize> = blunt_errors(&source("a.rs", text)).iter().map(|f| f.line).collect();
        assert_eq!(lines, [1, 3, 5]);
    }
}
