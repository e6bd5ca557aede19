//! `kill -9` in the middle of writing, over and over, on the real device: a child process writes and says what was
//! acknowledged; the parent kills it, opens what it left, and looks.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command as Process, Stdio};

use super::*;

const CYCLES: u64 = 50;
const DIR: &str = "HEARTH_TEST_CRASH_DIR";
const SEGMENTS: u32 = 4;
const SLOTS: u32 = 6;

#[test]
fn what_was_durable_survives_kill_9() {
    let dir = folder();
    let mut durable: BTreeMap<Slot, Block> = BTreeMap::new();
    let mut dice = Dice(7);
    let mut total = 0;
    for cycle in 0..CYCLES {
        let lines = run_and_kill(dir.path(), dice.roll(120) as usize);
        for line in &lines {
            apply(&mut durable, line);
        }
        total += lines.len();
        let rig = Rig::open(config(dir.path()));
        let found: BTreeMap<_, _> = rig.blocks().into_iter().collect();
        for (at, block) in &durable {
            assert_eq!(found.get(at), Some(block), "cycle {cycle}: acknowledged as durable");
        }
        for (at, block) in &found {
            let read = rig.read(*at, *block);
            let torn = !durable.contains_key(at) && matches!(read, Err(ReadError::Corrupt(_)));
            assert!(read == Ok(()) || torn, "cycle {cycle}: {at:?} {read:?}");
        }
        let leftovers = std::fs::read_dir(dir.path()).expect("a folder").flatten();
        let strange: Vec<_> =
            leftovers.filter(|entry| entry.path().extension() != Some("hearth".as_ref())).collect();
        assert!(strange.is_empty(), "cycle {cycle}: {strange:?}");
    }
    assert!(total > 500, "the child wrote");
}

/// Starts a child, reads some of its lines, kills it, and returns all it said.
fn run_and_kill(dir: &Path, lines: usize) -> Vec<String> {
    let mut child = Process::new(std::env::current_exe().expect("a test binary"))
        .args(["--exact", "--nocapture", "--test-threads=1", &child_name()])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut said = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let mut heard: Vec<String> = said.by_ref().take(lines).collect();
    child.kill().expect("runs");
    child.wait().expect("ends");
    heard.extend(said);
    heard
}

fn child_name() -> String {
    let module = module_path!();
    let path = module.split_once("::").map_or(module, |(_, path)| path);
    format!("{path}::child")
}

/// `+ segment index number generation` for a block that is durable, `- segment index` before its slot is given up.
fn apply(durable: &mut BTreeMap<Slot, Block>, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |at: usize| words[at].parse::<u64>().expect("a number");
    match words.as_slice() {
        ["+", _, _, _, _] => {
            let block = Block { number: number(3), generation: number(4) };
            durable.insert(slot(number(1) as u32, number(2) as u32), block);
        }
        ["-", _, _] => drop(durable.remove(&slot(number(1) as u32, number(2) as u32))),
        _ => {}
    }
}

/// Not a test of its own: what the child process runs.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let rig = Rig::open(config(Path::new(&dir)));
    let mut generation = rig.recovered.generation_max.0;
    let mut dice = Dice(generation ^ u64::from(std::process::id()));
    for segment in 0..SEGMENTS {
        if !rig.recovered.segments.iter().any(|found| found.segment == segment) {
            assert_eq!(rig.create(segment), Ok(()));
        }
    }
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).expect("heard");
    };
    // The test harness has begun a line.
    say(String::new());
    let mut in_flight: BTreeMap<u64, (Slot, Block, Ack)> = BTreeMap::new();
    loop {
        let at = slot(dice.roll(u64::from(SEGMENTS)) as u32, dice.roll(u64::from(SLOTS)) as u32);
        if in_flight.len() < 6 && !in_flight.values().any(|(other, ..)| *other == at) {
            generation += 1;
            // A slot keeps its number, so that no block is in two slots.
            let block = Block { number: u64::from(at.segment * 100 + at.index), generation };
            let ack = if dice.roll(3) == 0 { Ack::Written } else { Ack::Durable };
            say(format!("- {} {}", at.segment, at.index));
            let (header, payload) = (block.header(), block.area());
            rig.send(Command::Write { tag: Tag(generation), slot: at, header, payload, ack });
            in_flight.insert(generation, (at, block, ack));
        } else if let Done::Written { tag, result: Ok(()) } = rig.answer() {
            let (at, block, ack) = in_flight.remove(&tag.0).expect("sent");
            if ack == Ack::Durable {
                say(format!("+ {} {} {} {}", at.segment, at.index, block.number, block.generation));
            }
        }
    }
}
