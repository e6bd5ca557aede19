//! `hearth-benches SUITE`: measures and reports.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match hearth_benches::cli::run(&hearth_benches::cli::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hearth-benches: {error}");
            ExitCode::FAILURE
        }
    }
}
