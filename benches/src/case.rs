//! One case: several systems that do the same work, measured round by round.

use crate::progress::Progress;
use crate::report::{Row, Spread};
use crate::setting::Setting;
use crate::system::{Entry, Failure, Sample, System};

/// Several systems that do the same work.
pub struct Case {
    /// Name in the report.
    pub name: &'static str,
    /// What the case does, in a line above its table.
    pub about: String,
    /// The system that the ratios are taken against.
    pub baseline: &'static str,
    /// The systems.
    pub systems: Vec<Entry>,
}

/// Why a case has no result.
#[derive(Debug, thiserror::Error)]
#[error("{system} in {case}: {cause}")]
pub struct CaseError {
    system: &'static str,
    case: &'static str,
    #[source]
    cause: Failure,
}

/// What a case gave.
#[derive(Debug)]
pub struct Measured {
    /// Name of the case.
    pub case: &'static str,
    /// What the case does.
    pub about: String,
    /// The system that the ratios are taken against.
    pub baseline: &'static str,
    /// Samples of every system, in the order of the case.
    pub series: Vec<Series>,
    /// Systems that could not be had, and why.
    pub missing: Vec<(&'static str, String)>,
}

/// The samples of one metric of one system, one per round.
#[derive(Debug)]
pub struct Series {
    /// Name of the system.
    pub system: &'static str,
    /// What was measured.
    pub metric: &'static str,
    /// In which unit.
    pub unit: &'static str,
    /// One value per counted round.
    pub values: Vec<f64>,
}

impl Measured {
    /// The rows of the report.
    pub fn rows(&self, suite: &'static str) -> impl Iterator<Item = Row> {
        self.series.iter().map(move |series| {
            let spread = Spread::of(&series.values);
            Row {
                suite: suite.to_owned(),
                case: self.case.to_owned(),
                system: series.system.to_owned(),
                metric: series.metric.to_owned(),
                unit: series.unit.to_owned(),
                median: spread.median,
                min: spread.min,
                max: spread.max,
                rounds: series.values.len(),
            }
        })
    }

    /// The median over rounds of a series against the baseline of the same round.
    pub fn ratio(&self, series: &Series) -> Option<f64> {
        let base =
            self.series.iter().find(|base| base.system == self.baseline && base.metric == series.metric)?;
        let pairs = series.values.iter().zip(&base.values);
        let ratios: Vec<f64> = pairs.map(|(value, base)| value / base).collect();
        Some(Spread::of(&ratios).median)
    }
}

/// Opens the systems of a case and measures them, interleaved.
///
/// Every round runs each system once; each round starts with another system, so that none always
/// follows the same neighbour.
///
/// # Errors
/// When a system breaks. One that is [`Failure::Unavailable`] is left out, loudly.
pub fn measure(case: Case, setting: &Setting, progress: &Progress) -> Result<Measured, CaseError> {
    let Case { name, about, baseline, systems } = case;
    let failed = |system| move |cause| CaseError { system, case: name, cause };
    let mut open: Vec<(&'static str, Box<dyn System>)> = Vec::new();
    let mut missing = Vec::new();
    for Entry { name: system, open: start } in systems {
        progress.say(&format!("opening {system}"));
        match start() {
            Ok(opened) => open.push((system, opened)),
            Err(absent @ Failure::Unavailable { .. }) => {
                progress.warn(&format!("SKIPPED {system} in {name}: {absent}"));
                missing.push((system, absent.to_string()));
            }
            Err(cause) => return Err(failed(system)(cause)),
        }
    }
    let mut samples: Vec<Vec<Vec<Sample>>> = vec![Vec::new(); open.len()];
    for round in 0..setting.rounds_total() {
        progress.round(round);
        for at in turned(open.len(), round) {
            let (system, running) = &mut open[at];
            let sample = running.run_once().map_err(failed(system))?;
            if round >= setting.warmup_rounds {
                samples[at].push(sample);
            }
        }
    }
    let series =
        open.iter().zip(&samples).flat_map(|((system, _), rounds)| series_of(system, rounds)).collect();
    Ok(Measured { case: name, about, baseline, series, missing })
}

/// All places once, starting one further in each round.
fn turned(places: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..places).map(move |at| (at + round) % places)
}

fn series_of(system: &'static str, rounds: &[Vec<Sample>]) -> Vec<Series> {
    let first = rounds.first().map(Vec::as_slice).unwrap_or_default();
    let of_metric = |at: usize, sample: &Sample| Series {
        system,
        metric: sample.metric,
        unit: sample.unit,
        values: rounds.iter().map(|round| round[at].value).collect(),
    };
    first.iter().enumerate().map(|(at, sample)| of_metric(at, sample)).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    struct Logged {
        name: &'static str,
        log: Rc<RefCell<Vec<&'static str>>>,
        value: f64,
    }

    impl System for Logged {
        fn run_once(&mut self) -> Result<Vec<Sample>, Failure> {
            self.log.borrow_mut().push(self.name);
            self.value += 1.0;
            Ok(vec![Sample { metric: "m", unit: "u", value: self.value }])
        }
    }

    fn setting() -> Setting {
        Setting { quick: true, rounds: 3, warmup_rounds: 1, working_set_bytes: 0, round_bytes: 0 }
    }

    fn case(systems: Vec<Entry>) -> Case {
        Case { name: "c", about: String::new(), baseline: "a", systems }
    }

    fn logged(name: &'static str, value: f64, log: &Rc<RefCell<Vec<&'static str>>>) -> Entry {
        let log = Rc::clone(log);
        Entry::new(name, move || Ok(Box::new(Logged { name, log, value })))
    }

    #[test]
    fn rounds_are_interleaved_and_turned_and_warm_up_does_not_count() {
        let log = Rc::default();
        let systems = vec![logged("a", 0.0, &log), logged("b", 10.0, &log)];
        let measured = measure(case(systems), &setting(), &Progress::silent()).unwrap();
        assert_eq!(*log.borrow(), ["a", "b", "b", "a", "a", "b", "b", "a"]);
        assert_eq!(measured.series[0].values, [2.0, 3.0, 4.0]);
        let row = measured.rows("s").nth(1).unwrap();
        assert_eq!((row.median, row.min, row.max, row.rounds), (13.0, 12.0, 14.0, 3));
        assert_eq!(measured.ratio(&measured.series[1]), Some(13.0 / 3.0));
    }

    #[test]
    fn what_cannot_be_had_is_left_out_and_what_breaks_ends_the_run() {
        let log = Rc::default();
        let absent = Entry::new("peer", || {
            Err(Failure::Unavailable { why: "no peer".to_owned(), remedy: "install it" })
        });
        let measured =
            measure(case(vec![logged("a", 0.0, &log), absent]), &setting(), &Progress::silent()).unwrap();
        assert_eq!(measured.series.len(), 1);
        assert_eq!(measured.missing[0].0, "peer");
        let broken = Entry::new("b", || Err(Failure::WrongBytes { block: 7 }));
        let error = measure(case(vec![broken]), &setting(), &Progress::silent()).unwrap_err();
        assert_eq!(error.to_string(), "b in c: wrong bytes in block 7");
    }
}
