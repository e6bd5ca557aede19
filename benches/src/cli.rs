//! The command line, and the way from there to a report.

use std::path::PathBuf;

use crate::case::{self, Case, CaseError};
use crate::machine::Machine;
use crate::progress::Progress;
use crate::report::Report;
use crate::setting::Setting;
use crate::suite::{self, Suite};
use crate::table;

/// Rounds measured when the command line does not say.
const ROUNDS: usize = 15;
const ROUNDS_QUICK: usize = 5;

/// Measures Hearth, its peers and the limits of the machine, side by side.
#[derive(Debug, clap::Parser)]
#[command(name = "hearth-benches", version)]
pub struct Args {
    /// Suite to run, or `all`; --list shows them
    #[arg(required_unless_present = "list")]
    suite: Option<String>,
    /// Small working sets and few rounds: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Write the report here as JSON too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measured rounds per case [default: 15, with --quick 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Run this case alone
    #[arg(long, value_name = "CASE")]
    only: Option<String>,
    /// List suites and their cases, and measure nothing
    #[arg(long)]
    list: bool,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The suite is not known.
    #[error("no suite {name:?}; there are: {known}")]
    NoSuite {
        /// As asked.
        name: String,
        /// All names.
        known: String,
    },
    /// The case is in none of the suites asked for.
    #[error("no case {name:?}; there are: {known}")]
    NoCase {
        /// As asked.
        name: String,
        /// All names.
        known: String,
    },
    /// A case could not be measured.
    #[error(transparent)]
    Case(#[from] CaseError),
    /// The report file could not be written.
    #[error("cannot write the report to {path}: {cause}")]
    Write {
        /// Where to.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
}

/// Runs what the command line asks for: measures, prints the tables, writes the file.
///
/// # Errors
/// When a name is not known, a system of ours or a limit fails, or the file cannot be written. A peer
/// that cannot be had is no error: it is said on stderr, and its rows are missing.
pub fn run(args: &Args) -> Result<(), RunError> {
    if args.list {
        list();
        return Ok(());
    }
    let name = args.suite.as_deref().unwrap_or_default();
    let rounds = args.rounds.map_or(if args.quick { ROUNDS_QUICK } else { ROUNDS }, usize::from);
    let setting = Setting::of_machine(args.quick, rounds);
    let chosen = find(name)?;
    let cases = cases_of(chosen, &setting, args.only.as_deref())?;
    let mut report = Report { machine: Machine::here(), rows: Vec::new() };
    eprintln!("{}", report.machine);
    for (suite, case) in cases {
        let progress = Progress::start(suite, case.name, setting.rounds_total());
        let measured = case::measure(case, &setting, &progress)?;
        progress.finish();
        println!("{}", table::of(suite, &measured));
        report.rows.extend(measured.rows(suite));
    }
    if let Some(path) = &args.json {
        report.write(path).map_err(|cause| RunError::Write { path: path.clone(), cause })?;
    }
    Ok(())
}

fn list() {
    let setting = Setting::of_machine(true, 1);
    for suite in suite::SUITES {
        println!("{:10} {}", suite.name, suite.about);
        for case in (suite.cases)(&setting) {
            println!("  {}", case.name);
        }
    }
}

fn find(name: &str) -> Result<&'static [Suite], RunError> {
    if name == "all" {
        return Ok(suite::SUITES);
    }
    let at = suite::SUITES.iter().position(|suite| suite.name == name);
    at.map(|at| &suite::SUITES[at..=at]).ok_or_else(|| RunError::NoSuite {
        name: name.to_owned(),
        known: suite::SUITES.iter().map(|suite| suite.name).collect::<Vec<_>>().join(", "),
    })
}

/// The cases of some suites, each with the name of its suite.
fn cases_of(
    suites: &[Suite],
    setting: &Setting,
    only: Option<&str>,
) -> Result<Vec<(&'static str, Case)>, RunError> {
    let of_suite = |suite: &Suite| {
        let name = suite.name;
        (suite.cases)(setting).into_iter().map(move |case| (name, case))
    };
    let all: Vec<_> = suites.iter().flat_map(of_suite).collect();
    let Some(only) = only else { return Ok(all) };
    let known = all.iter().map(|(_, case)| case.name).collect::<Vec<_>>().join(", ");
    let chosen: Vec<_> = all.into_iter().filter(|(_, case)| case.name == only).collect();
    if chosen.is_empty() {
        return Err(RunError::NoCase { name: only.to_owned(), known });
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn unknown_names_say_what_there_is() {
        let error = run(&Args::parse_from(["hearth-benches", "nothing"])).unwrap_err().to_string();
        assert!(error.contains("copy"), "{error}");
        let args = ["hearth-benches", "copy", "--only", "copy_1TiB"];
        let error = run(&Args::parse_from(args)).unwrap_err().to_string();
        assert!(error.contains("copy_1MiB"), "{error}");
    }

    #[test]
    fn a_suite_is_needed_unless_listing() {
        assert!(Args::try_parse_from(["hearth-benches"]).is_err());
        assert!(Args::try_parse_from(["hearth-benches", "--list"]).is_ok());
        assert!(Args::try_parse_from(["hearth-benches", "copy", "--rounds", "0"]).is_err());
    }
}
