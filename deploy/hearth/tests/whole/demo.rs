//! The demo shows what it claims, and leaves nothing, however it ends.

use rustix::process::Signal;

use crate::checkpoint;
use crate::run::{Run, folder, until};

/// The demo with a small checkpoint and a short document.
fn demo(folder: tempfile::TempDir, extra: &[&str]) -> Run {
    let model = checkpoint::small().to_str().unwrap();
    let mut args = vec!["demo", "--model", model, "--document-bytes", "6000", "--new-tokens", "8"];
    args.extend([
        "--pinned-bytes",
        "64MiB",
        "--nvme-bytes",
        "256MiB",
        "--kv-bytes",
        "64MiB",
        "--threads",
        "1",
    ]);
    args.extend(extra);
    Run::start(folder, &args)
}

fn numbers(run: &Run) -> serde_json::Value {
    let text = std::fs::read_to_string(run.path().join("out.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn loaded(numbers: &serde_json::Value, phase: usize, tier: &str) -> u64 {
    numbers["phases"][phase]["first"]["usage"]["hearth"]["loaded_tokens"][tier].as_u64().unwrap()
}

#[test]
fn every_phase_holds_and_nothing_is_left() {
    let mut run = demo(folder(), &["--json", "out.json", "--verbose"]);
    let status = run.wait();
    let output = run.output();
    assert!(status.success(), "{output}");
    run.wait_all_gone();
    assert_eq!(run.leftovers(), Vec::<std::path::PathBuf>::new());
    let numbers = numbers(&run);
    assert_eq!(numbers["ok"], true);
    assert_eq!(numbers["phases"].as_array().unwrap().len(), 6);
    for (phase, tier) in [(1, "engine"), (2, "pinned"), (3, "pinned"), (4, "nvme")] {
        assert!(loaded(&numbers, phase, tier) > 1000, "{phase} {tier}: {numbers}");
    }
    for tier in ["engine", "pinned", "nvme"] {
        assert_eq!((loaded(&numbers, 0, tier), loaded(&numbers, 5, tier)), (0, 0), "{tier}");
    }
    assert!(output.contains("(f) store dead") && output.contains("3/3"), "{output}");
}

#[test]
fn a_damaged_block_is_a_counted_miss_and_the_tokens_stay_the_same() {
    let mut run = demo(folder(), &["--corrupt", "--json", "out.json"]);
    let status = run.wait();
    assert!(status.success(), "{}", run.output());
    let numbers = numbers(&run);
    assert!(numbers["damage"]["offset"].as_u64().is_some());
    assert!(numbers["blocks_asked"]["misses"]["corrupt"].as_u64().unwrap() >= 1, "{numbers}");
    assert!(numbers["phases"][4]["first"]["usage"]["hearth"]["computed_tokens"].as_u64().unwrap() > 100);
    run.wait_all_gone();
}

#[test]
fn interrupting_leaves_nothing() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut run = demo(folder(), &[]);
        until("all parts run", || run.processes().len() >= 5);
        run.signal(signal);
        assert_eq!(run.wait().code(), Some(code), "{}", run.output());
        assert_eq!(run.processes(), Vec::<u32>::new());
        assert_eq!(run.leftovers(), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn killing_the_demo_kills_its_parts_and_the_next_run_cleans_up() {
    let mut run = demo(folder(), &[]);
    until("all parts run", || run.processes().len() >= 5);
    run.signal(Signal::KILL);
    run.wait();
    run.wait_all_gone();
    assert_eq!(run.leftovers().len(), 1);
    let mut next = demo(run.into_folder(), &[]);
    until("the abandoned directory is gone and there is a new one", || {
        next.leftovers().len() == 1 && next.processes().len() >= 2
    });
    next.signal(Signal::INT);
    next.wait();
    assert_eq!(next.leftovers(), Vec::<std::path::PathBuf>::new());
}
