//! What the demo found: a table for people, JSON for machines.

use std::time::Duration;

use comfy_table::{CellAlignment, LineStyle, Table, presets};
use serde::Serialize;

use super::corrupt::Damage;
use super::phase::Phase;
use crate::client::chat::{Answer, Usage};
use crate::document;
use crate::metrics::BlocksAsked;

const SUGGEST_CORRUPT: &str =
    "\n  hearth demo --corrupt   damage a stored block on disk, and see that it is noticed";

/// All that was found, as it is written for machines.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Whether every phase held.
    ok: bool,
    /// What did not hold.
    error: Option<String>,
    model: String,
    document: String,
    document_bytes: usize,
    phases: Vec<Row>,
    damage: Option<Damage>,
    blocks_asked: BlocksAsked,
}

/// One request.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Request {
    user: String,
    engine: String,
    decision: String,
    first_token_seconds: f64,
    usage: Usage,
}

/// One phase.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    phase: char,
    title: &'static str,
    /// The request that the phase is about.
    first: Request,
    /// Those of the other users, sent together.
    others: Vec<Request>,
    /// Answers that are the same as the first ones to these questions; the demo fails otherwise.
    answers_identical: usize,
}

impl Request {
    /// What one user's request took.
    pub(crate) fn new(user: &str, engine: &str, answer: &Answer) -> Self {
        Self {
            user: user.to_owned(),
            engine: engine.to_owned(),
            decision: answer.decision.clone(),
            first_token_seconds: answer.first_token.as_secs_f64(),
            usage: answer.usage,
        }
    }

    /// What it took.
    pub(crate) fn usage(&self) -> &Usage {
        &self.usage
    }
}

impl Row {
    /// A phase whose answers were all identical to the first ones.
    pub(crate) fn new(phase: Phase, first: Request, others: Vec<Request>) -> Self {
        let answers_identical = 1 + others.len();
        Self { phase: phase.letter(), title: phase.title(), first, others, answers_identical }
    }

    /// One line for the running commentary. `cold` is the first row, if this is another one.
    pub(crate) fn line(&self, cold: Option<&Self>) -> String {
        let Usage { prompt_tokens, hearth, .. } = self.first.usage;
        let loaded = hearth.loaded_tokens;
        let found: Vec<String> =
            [(loaded.engine, "own pages"), (loaded.pinned, "store memory"), (loaded.nvme, "NVMe")]
                .into_iter()
                .filter(|(tokens, _)| *tokens > 0)
                .map(|(tokens, tier)| format!("{tokens} from {tier}"))
                .collect();
        let found = if found.is_empty() { "none loaded".to_owned() } else { found.join(", ") };
        let times = cold.map_or_else(String::new, |cold| {
            let times = cold.first.first_token_seconds / self.first.first_token_seconds;
            if times >= 2.0 { format!(", {times:.0} times faster than cold") } else { String::new() }
        });
        format!(
            "    first token after {:.2} s{times}; of {prompt_tokens} prompt tokens {} computed, {found}",
            self.first.first_token_seconds, hearth.computed_tokens
        )
    }

    fn others_slowest_seconds(&self) -> f64 {
        self.others.iter().map(|request| request.first_token_seconds).fold(0.0, f64::max)
    }
}

impl Report {
    /// What is served and asked about.
    pub(crate) fn begin(&mut self, model: &str, document: &str) {
        self.model = model.to_owned();
        self.document = document::TITLE.to_owned();
        self.document_bytes = document.len();
    }

    /// Adds a phase that held, and gives its line.
    pub(crate) fn add(&mut self, row: Row) -> String {
        let line = row.line(self.phases.first());
        self.phases.push(row);
        line
    }

    /// A block was damaged.
    pub(crate) fn add_damage(&mut self, damage: Damage) {
        self.damage = Some(damage);
    }

    /// What the engines counted.
    pub(crate) fn set_blocks_asked(&mut self, asked: BlocksAsked) {
        self.blocks_asked = asked;
    }

    /// The end, good or not.
    pub(crate) fn finish(&mut self, error: Option<&super::DemoError>) {
        self.ok = error.is_none();
        self.error = error.map(ToString::to_string);
    }

    /// For machines.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("the report holds only plain values")
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
        let (users, others) = (document::QUESTIONS.len(), document::QUESTIONS.len() - 1);
        table.set_header([
            "phase".to_owned(),
            "asked at".to_owned(),
            "TTFT\ns".to_owned(),
            "prompt\ntokens".to_owned(),
            "\ncomputed".to_owned(),
            "loaded\nengine".to_owned(),
            "loaded\npinned".to_owned(),
            "loaded\nnvme".to_owned(),
            format!("{others} more\nTTFT s"),
            "same\ntokens".to_owned(),
        ]);
        for row in &self.phases {
            let Usage { prompt_tokens, hearth, .. } = row.first.usage;
            let loaded = hearth.loaded_tokens;
            table.add_row([
                format!("({}) {}", row.phase, row.title),
                row.first.engine.clone(),
                format!("{:.2}", row.first.first_token_seconds),
                prompt_tokens.to_string(),
                hearth.computed_tokens.to_string(),
                loaded.engine.to_string(),
                loaded.pinned.to_string(),
                loaded.nvme.to_string(),
                format!("{:.2}", row.others_slowest_seconds()),
                format!("{}/{users}", row.answers_identical),
            ]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 1));
        }
        format!(
            "\n{table}\n\
             TTFT is the time to the first token: of one user alone, and of the slowest of {others} more at once.\n\
             Tokens are those of the first user's prompt, by where their KV came from: computed, or loaded from\n\
             the engine's own pages, from the store node's pinned memory, or from its NVMe."
        )
    }

    /// What to take from it, and where to go.
    pub(crate) fn closing(&self, took: Duration) -> String {
        let asked = &self.blocks_asked;
        let share = |count: u64| 100.0 * count as f64 / asked.total().max(1) as f64;
        let hits =
            ["engine", "pinned", "nvme"].map(|tier| format!("{tier} {:.1} %", share(asked.hits_in(tier))));
        let misses: Vec<String> =
            asked.misses.iter().map(|(reason, count)| format!("{reason} {:.1} %", share(*count))).collect();
        format!(
            "\nOf {} blocks the engines asked for, found: {}; missed: {}.\n\
             All answers were the same, token by token. {:.0} s; nothing is left running.\n\n\
             Next:\n  \
             hearth up               leave such a stack running, with an OpenAI-compatible API\n  \
             hearth up --model DIR   with a model that talks: any Llama checkpoint directory of Hugging Face",
            asked.total(),
            hits.join(", "),
            if misses.is_empty() { "none".to_owned() } else { misses.join(", ") },
            took.as_secs_f64()
        ) + if self.damage.is_none() { SUGGEST_CORRUPT } else { "" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::chat::{Loaded, Sources};

    fn request(seconds: f64, computed_tokens: u64, nvme: u64) -> Request {
        let loaded_tokens = Loaded { nvme, ..Loaded::default() };
        let hearth = Sources { computed_tokens, loaded_tokens };
        Request {
            user: "ada".to_owned(),
            engine: "engine-1".to_owned(),
            decision: "longest match".to_owned(),
            first_token_seconds: seconds,
            usage: Usage { prompt_tokens: computed_tokens + nvme, completion_tokens: 24, hearth },
        }
    }

    fn report() -> Report {
        let mut report = Report::default();
        report.add(Row::new(
            Phase::Cold,
            request(8.0, 4500, 0),
            vec![request(0.5, 4500, 0), request(0.7, 4500, 0)],
        ));
        report
    }

    #[test]
    fn the_commentary_compares_with_cold() {
        let mut report = report();
        let line = report.add(Row::new(Phase::StoreKilled, request(0.5, 4, 4496), vec![]));
        assert!(line.contains("16 times faster") && line.contains("4 computed, 4496 from NVMe"), "{line}");
        let line = report.add(Row::new(Phase::StoreDead, request(8.1, 4500, 0), vec![]));
        assert!(!line.contains("times") && line.contains("none loaded"), "{line}");
    }

    #[test]
    fn the_table_has_a_row_per_phase() {
        let table = report().table();
        assert!(table.contains("(a) cold") && table.contains("0.70") && table.contains("3/3"), "{table}");
    }

    #[test]
    fn machines_get_the_same_numbers() {
        let mut report = report();
        report.finish(None);
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["ok"], true);
        assert_eq!(json["phases"][0]["phase"], "a");
        assert_eq!(json["phases"][0]["first"]["usage"]["hearth"]["computed_tokens"], 4500);
    }
}
