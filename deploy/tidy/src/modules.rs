//! No source file that nothing compiles.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

use crate::{Finding, Source};

/// Files that no target reaches through `mod` declarations.
///
/// `roots` are the source files of the targets; `files` every Rust file by path.
pub fn unreached(roots: &[&str], files: &BTreeMap<&str, &Source>) -> Vec<Finding> {
    let mut reached: BTreeSet<String> = BTreeSet::new();
    let mut open: Vec<(String, String)> =
        roots.iter().map(|root| ((*root).to_owned(), parent(root).to_owned())).collect();
    while let Some((path, folder)) = open.pop() {
        let Some(source) = files.get(path.as_str()) else { continue };
        if !reached.insert(path.clone()) {
            continue;
        }
        let mut declared = Declared { file_folder: parent(&path), folder, found: Vec::new() };
        declared.visit_file(&source.tree);
        open.extend(declared.found.into_iter().map(|path| (path.clone(), children(&path))));
    }
    files
        .keys()
        .filter(|path| !reached.contains(**path))
        .map(|path| Finding::of(path, "no target compiles this file: declare it with `mod` or remove it"))
        .collect()
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The folder of the modules that a file declares.
fn children(path: &str) -> String {
    match path.strip_suffix("/mod.rs") {
        Some(folder) => folder.to_owned(),
        None => path.strip_suffix(".rs").unwrap_or(path).to_owned(),
    }
}

/// Collects the files that one file declares.
struct Declared<'a> {
    file_folder: &'a str,
    folder: String,
    found: Vec<String>,
}

impl Declared<'_> {
    fn declare(&mut self, name: &str) {
        self.found.push(format!("{}/{name}.rs", self.folder));
        self.found.push(format!("{}/{name}/mod.rs", self.folder));
    }

    /// `mod name;` inside a macro, which the syntax tree does not show.
    fn in_tokens(&mut self, tokens: TokenStream) {
        let trees: Vec<TokenTree> = tokens.into_iter().collect();
        for window in trees.windows(3) {
            if let [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Punct(end)] = window
                && word == "mod"
                && end.as_char() == ';'
            {
                self.declare(&name.to_string());
            }
        }
        for tree in trees {
            if let TokenTree::Group(group) = tree {
                self.in_tokens(group.stream());
            }
        }
    }
}

impl<'ast> Visit<'ast> for Declared<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let name = item.ident.to_string();
        if item.content.is_some() {
            let inner = format!("{}/{name}", self.folder);
            let outer = std::mem::replace(&mut self.folder, inner);
            visit::visit_item_mod(self, item);
            self.folder = outer;
        } else if let Some(path) = item.attrs.iter().find_map(path_attribute) {
            self.found.push(format!("{}/{path}", self.file_folder));
        } else {
            self.declare(&name);
        }
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        if item.path.is_ident("include")
            && let Ok(path) = syn::parse2::<syn::LitStr>(item.tokens.clone())
        {
            self.found.push(format!("{}/{}", self.file_folder, path.value()));
        }
        self.in_tokens(item.tokens.clone());
    }
}

fn path_attribute(attribute: &syn::Attribute) -> Option<String> {
    let syn::Meta::NameValue(pair) = &attribute.meta else { return None };
    match &pair.value {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) if pair.path.is_ident("path") => {
            Some(path.value())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead(files: &[(&str, &str)], roots: &[&str]) -> Vec<String> {
        let sources: Vec<Source> =
            files.iter().map(|(path, text)| Source::parse(path, text).unwrap()).collect();
        let by_path = sources.iter().map(|source| (source.path.as_str(), source)).collect();
        unreached(roots, &by_path).into_iter().map(|finding| finding.path).collect()
    }

    #[test]
    fn nested_modules_are_followed() {
        let files = [
            ("x/src/lib.rs", "mod a; mod inline { mod b; } #[cfg(test)] #[path = \"odd.rs\"] mod o;"),
            ("x/src/a.rs", "pub mod deep;"),
            ("x/src/a/deep.rs", "include!(\"more.rs\");"),
            ("x/src/a/more.rs", "fn f() {}"),
            ("x/src/inline/b.rs", ""),
            ("x/src/odd.rs", "cfg_if! { if #[cfg(unix)] { mod unix; } }"),
            ("x/src/odd/unix.rs", ""),
        ];
        assert_eq!(dead(&files, &["x/src/lib.rs"]), Vec::<String>::new());
    }

    #[test]
    fn a_dead_file_is_found() {
        let files = [("x/src/lib.rs", "mod a;"), ("x/src/a.rs", ""), ("x/src/old.rs", "mod a;")];
        assert_eq!(dead(&files, &["x/src/lib.rs"]), ["x/src/old.rs"]);
    }

    #[test]
    fn every_target_is_a_root() {
        let files = [("x/src/main.rs", ""), ("x/tests/it.rs", "mod pair;"), ("x/tests/pair.rs", "")];
        assert_eq!(dead(&files, &["x/src/main.rs", "x/tests/it.rs"]), Vec::<String>::new());
    }
}
