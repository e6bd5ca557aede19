//! The report as a table on the terminal.

use comfy_table::{Cell, CellAlignment, LineStyle, Table, presets};

use crate::case::Measured;
use crate::report::Spread;

/// A table of one case, with a line above that says what it does and one below for what is missing.
pub fn of(suite: &str, measured: &Measured) -> String {
    let against = format!("x {}", measured.baseline);
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header(["system", "metric", "median", "min", "max", "unit", against.as_str()]);
    for series in &measured.series {
        let spread = Spread::of(&series.values);
        let ratio = measured.ratio(series).map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        let number = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        table.add_row([
            Cell::new(series.system),
            Cell::new(series.metric),
            number(short(spread.median)),
            number(short(spread.min)),
            number(short(spread.max)),
            Cell::new(series.unit),
            number(ratio),
        ]);
    }
    let rounds = measured.series.first().map_or(0, |series| series.values.len());
    let mut text = format!("{suite} / {}: {}, {rounds} rounds\n{table}", measured.case, measured.about);
    for (system, why) in &measured.missing {
        text.push_str(&format!("\nskipped {system}: {why}"));
    }
    text
}

/// Three digits that count.
fn short(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Series;

    #[test]
    fn ratios_stand_beside_the_numbers_and_gaps_are_said() {
        let series =
            |system, values: [f64; 3]| Series { system, metric: "GB/s", unit: "GB/s", values: values.into() };
        let measured = Measured {
            case: "load_1MiB",
            about: "1 MiB blocks".to_owned(),
            baseline: "limit:memcpy",
            series: vec![series("limit:memcpy", [10.0, 10.0, 20.0]), series("hearth", [15.0, 15.0, 15.0])],
            missing: vec![("redis", "not here".to_owned())],
        };
        let text = of("store", &measured);
        assert!(text.contains("x limit:memcpy") && text.contains("1.50"), "{text}");
        assert!(text.contains("skipped redis: not here"), "{text}");
        assert_eq!([short(123.4), short(12.34), short(1.234)], ["123", "12.3", "1.23"]);
    }
}
