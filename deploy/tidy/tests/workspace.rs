//! Every rule, applied to the tree that this test runs in.
//!
//! A rule that is broken fails with one line per place and what to do there.

use hearth_tidy::workspace::WorkspaceError;
use hearth_tidy::{Finding, Source, Workspace, size, tokens};

fn workspace() -> Workspace {
    Workspace::open().expect("the tree can be read")
}

fn sources() -> Vec<Source> {
    workspace().sources().expect("every Rust file parses")
}

#[track_caller]
fn assert_none(mut findings: Vec<Finding>) {
    findings.sort();
    let lines: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(findings.is_empty(), "{} finding(s):\n{}\n", findings.len(), lines.join("\n"));
}

#[track_caller]
fn assert_none_of(findings: Result<Vec<Finding>, WorkspaceError>) {
    assert_none(findings.expect("the check can run"));
}

#[track_caller]
fn assert_none_in_sources(rule: fn(&Source) -> Vec<Finding>) {
    assert_none(sources().iter().flat_map(rule).collect());
}

#[test]
fn only_drawn_arrows_between_crates() {
    assert_none_of(workspace().forbidden_arrows());
}

#[test]
fn no_crate_where_it_may_not_be() {
    assert_none_of(workspace().forbidden_crates());
}

#[test]
fn files_stand_where_they_belong() {
    assert_none(workspace().misplaced());
}

#[test]
fn manifests_inherit_from_the_root() {
    assert_none_of(workspace().stray_manifests());
}

#[test]
fn every_dependency_is_used() {
    assert_none_of(workspace().unused_dependencies());
}

#[test]
fn every_file_is_compiled() {
    assert_none_of(workspace().dead_files());
}

#[test]
fn files_are_short() {
    let sources = sources();
    for finding in size::long_files(&sources, size::FILE_LINES_ASK) {
        println!("has it one job? {finding}");
    }
    assert_none(size::long_files(&sources, size::FILE_LINES_MAX));
}

#[test]
fn functions_are_short() {
    let workspace = workspace();
    let ratchet = workspace.texts.get(size::RATCHET).expect("the ratchet file is in the tree");
    let functions: Vec<_> = sources().iter().flat_map(size::functions).collect();
    assert_none(size::against_ratchet(&functions, ratchet));
}

#[test]
fn nothing_is_left_over() {
    assert_none(workspace().leftovers());
}

#[test]
fn words_that_stay_out() {
    assert_none(workspace().forbidden_words());
}

#[test]
fn unsafe_stands_only_in_sys() {
    assert_none_in_sources(tokens::stray_unsafe);
}

#[test]
fn unsafe_has_its_reason() {
    assert_none_in_sources(tokens::unexplained_unsafe);
}

#[test]
fn queues_have_bounds() {
    assert_none_in_sources(tokens::unbounded_queues);
}

#[test]
fn threads_do_not_sleep() {
    assert_none_in_sources(tokens::sleeps);
}

#[test]
fn ignored_tests_say_why() {
    assert_none_in_sources(tokens::ignored_without_reason);
}

#[test]
fn errors_have_kinds() {
    assert_none_in_sources(tokens::blunt_errors);
}
