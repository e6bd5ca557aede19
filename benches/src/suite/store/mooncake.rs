//! Mooncake Store over tcp: its own master and server, and its Python client, driven over pipes.
//!
//! The driver is `peers/mooncake_driver.py`; it times the calls of the client library alone, so that Python
//! and the pipes cost the peer nothing.

use std::io::{BufRead, BufReader, Error, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::{RUN_BLOCKS, Shape};
use crate::peer;
use crate::system::{Doing, Failure, Sample, System};

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    Load,
    Write,
}

struct Driver {
    shape: Shape,
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

pub(super) fn open(shape: Shape, work: Work) -> Result<Box<dyn System>, Failure> {
    let python = peer::executable("mooncake")?;
    let mut child = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/peers/mooncake_driver.py"))
        .arg(match work {
            Work::Load => "load",
            Work::Write => "write",
        })
        .args([shape.block_bytes, RUN_BLOCKS, shape.runs, shape.round_runs].map(|size| size.to_string()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .doing("starting mooncake")?;
    let (Some(asks), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Error::other("no pipes")).doing("starting mooncake");
    };
    let mut driver = Driver { shape, child, asks, answers: BufReader::new(answers) };
    match driver.answer()?.as_str() {
        "ready" => Ok(Box::new(driver)),
        other => {
            let why = format!("mooncake did not start: {other:?}");
            Err(Failure::Unavailable {
                why,
                remedy: "benches/peers/mooncake_driver.py run by hand says more",
            })
        }
    }
}

impl Driver {
    fn answer(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.answers.read_line(&mut line).doing("hearing from mooncake")?;
        Ok(line.trim_end().to_owned())
    }
}

impl System for Driver {
    fn run_once(&mut self) -> Result<Vec<Sample>, Failure> {
        self.asks.write_all(b"round\n").doing("asking mooncake")?;
        let answer = self.answer()?;
        let seconds: f64 = answer.parse().doing("measuring mooncake")?;
        Ok(vec![Sample::rate(self.shape.round_bytes(), Duration::from_secs_f64(seconds))])
    }
}

impl Drop for Driver {
    /// The driver ends its own children when its input ends.
    fn drop(&mut self) {
        let _told = self.asks.write_all(b"end\n");
        let _reaped = self.child.wait();
    }
}
