//! The report as a file: what was measured, and where.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::machine::Machine;

/// What was measured, and where.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// One row per suite, case, system and metric.
    pub rows: Vec<Row>,
}

/// One metric of one system.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Suite, `store`.
    pub suite: String,
    /// Case, `load_1MiB`.
    pub case: String,
    /// `hearth`, `hearth:variant`, a peer's name, or `limit:memcpy`.
    pub system: String,
    /// What was measured.
    pub metric: String,
    /// In which unit.
    pub unit: String,
    /// Over the counted rounds.
    pub median: f64,
    /// Smallest of them.
    pub min: f64,
    /// Largest of them.
    pub max: f64,
    /// How many.
    pub rounds: usize,
}

/// Median and extremes of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one; the mean of the two in the middle of an even number.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value; all are NaN where there is none.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else {
            return Self { median: f64::NAN, min: f64::NAN, max: f64::NAN };
        };
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Self { median: f64::midpoint(low, high), min: *min, max: *max }
    }
}

impl Report {
    /// Writes the report as JSON, whole or not at all.
    ///
    /// # Errors
    /// When the file or its folder cannot be written.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        file.persist(path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert!(Spread::of(&[]).median.is_nan());
    }

    #[test]
    fn the_file_has_the_published_shape() {
        let row = Row {
            suite: "store".to_owned(),
            case: "load_1MiB".to_owned(),
            system: "limit:memcpy".to_owned(),
            metric: "GB/s".to_owned(),
            unit: "GB/s".to_owned(),
            median: 2.0,
            min: 1.0,
            max: 3.0,
            rounds: 3,
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        Report { machine: Machine::here(), rows: vec![row] }.write(&path).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let mut top: Vec<_> = read.as_object().unwrap().keys().collect();
        top.sort();
        assert_eq!(top, ["machine", "rows"]);
        let mut fields: Vec<_> = read["rows"][0].as_object().unwrap().keys().collect();
        fields.sort();
        assert_eq!(fields, ["case", "max", "median", "metric", "min", "rounds", "suite", "system", "unit"]);
        assert!(read["machine"]["cores"].as_u64().unwrap() > 0);
    }
}
