//! Causal attention of grouped query heads, straight over the KV pages.
//!
//! A query row meets the keys page by page in their absolute order, with a running maximum and sum (online
//! softmax). What a row computes depends on its own query, its position and the pages up to it; rows only share
//! the loads. That is why chunking, batching and threads cannot change a bit of the result.

use rayon::prelude::*;

use super::Segment;
use super::linear::Rows;
use super::math::{LANES, exp, sum, vectorized};
use crate::checkpoint::ModelConfig;
use crate::kv::pages::{PageId, Pages};

/// Keys are met in groups of this many, one lane each. Pages hold a multiple of it.
pub(crate) const KEYS: usize = LANES;
/// Tokens of one segment that a task computes: enough rows to make turning a page's keys worth it,
/// few enough that their state stays in the first-level cache.
const TASK_TOKENS: usize = 32;
/// Rows that are computed together, so that a loaded key serves all of them. Their sums fill the registers of a
/// machine with 16 vectors of 256 bits. It has no influence on the result.
const TILE_ROWS: usize = 4;

/// Attention of all rows in one layer. `qkv` rows hold queries, then keys, then values; the keys and values
/// of these rows are in the pages already.
pub(super) fn attend(
    config: &ModelConfig,
    qkv: &Rows,
    segments: &[Segment<'_>],
    (layer, pages): (usize, &Pages),
) -> Rows {
    let tasks = tasks(config, segments);
    let results: Vec<Vec<f32>> = tasks
        .par_iter()
        .map(|task| {
            let mut state = State::new(config, qkv, task);
            vectorized(
                #[inline(always)]
                || state.run(pages, layer, task),
            );
            state.finish()
        })
        .collect();
    let (dim, group) = (config.head_dim, config.heads / config.kv_heads);
    let width = config.heads * dim;
    let mut values = vec![0.0; qkv.values.len() / qkv.width * width];
    for (task, result) in tasks.iter().zip(results) {
        for (token, heads) in result.chunks_exact(group * dim).enumerate() {
            let at = (task.row + token) * width + task.kv_head * group * dim;
            values[at..at + group * dim].copy_from_slice(heads);
        }
    }
    Rows { values, width }
}

/// Some tokens of a segment under one KV head.
struct Task<'a> {
    pages: &'a [PageId],
    kv_head: usize,
    /// Row of the first token among all rows of the step.
    row: usize,
    /// Position of the first token in its sequence.
    first: usize,
    tokens: usize,
}

fn tasks<'a>(config: &ModelConfig, segments: &[Segment<'a>]) -> Vec<Task<'a>> {
    let mut tasks = vec![];
    let mut row = 0;
    for segment in segments {
        for start in (0..segment.tokens.len()).step_by(TASK_TOKENS) {
            let tokens = TASK_TOKENS.min(segment.tokens.len() - start);
            tasks.extend((0..config.kv_heads).map(|kv_head| Task {
                pages: segment.pages,
                kv_head,
                row: row + start,
                first: segment.first + start,
                tokens,
            }));
        }
        row += segment.tokens.len();
    }
    tasks
}

/// What the rows of a task have met so far. A row is one query head of one token.
struct State {
    dim: usize,
    group: usize,
    /// Scaled queries.
    queries: Vec<f32>,
    /// Values met, weighted by `exp(score - maximum)`.
    mixed: Vec<f32>,
    maximum: Vec<f32>,
    total: Vec<f32>,
    /// Keys of one group with the dimension outermost.
    turned: Vec<[f32; KEYS]>,
}

impl State {
    fn new(config: &ModelConfig, qkv: &Rows, task: &Task<'_>) -> Self {
        let (dim, group) = (config.head_dim, config.heads / config.kv_heads);
        let scale = 1.0 / (dim as f32).sqrt();
        let mut queries = Vec::with_capacity(task.tokens * group * dim);
        for token in 0..task.tokens {
            let at = (task.row + token) * qkv.width + task.kv_head * group * dim;
            queries.extend(qkv.values[at..at + group * dim].iter().map(|q| q * scale));
        }
        let rows = task.tokens * group;
        Self {
            dim,
            group,
            queries,
            mixed: vec![0.0; rows * dim],
            maximum: vec![f32::NEG_INFINITY; rows],
            total: vec![0.0; rows],
            turned: vec![[0.0; KEYS]; dim],
        }
    }

    #[inline(always)]
    fn run(&mut self, pages: &Pages, layer: usize, task: &Task<'_>) {
        let end = task.first + task.tokens;
        for (index, &page) in task.pages.iter().enumerate() {
            let page_first = index * pages.page_tokens();
            if page_first >= end {
                break;
            }
            let (keys, values) = pages.head(page, layer, task.kv_head);
            let groups = keys.chunks_exact(KEYS * self.dim).zip(values.chunks_exact(KEYS * self.dim));
            for (part, (keys, values)) in groups.enumerate() {
                let keys_first = page_first + part * KEYS;
                if keys_first >= end {
                    break;
                }
                self.turn(keys);
                self.meet(values, keys_first, task);
            }
        }
    }

    #[inline(always)]
    fn turn(&mut self, keys: &[f32]) {
        for (key, elements) in keys.chunks_exact(self.dim).enumerate() {
            for (turned, &element) in self.turned.iter_mut().zip(elements) {
                turned[key] = element;
            }
        }
    }

    /// All rows that see any of the keys meet them, in tiles.
    #[inline(always)]
    fn meet(&mut self, values: &[f32], keys_first: usize, task: &Task<'_>) {
        let group = self.group;
        let rows = task.tokens * group;
        let mut row = keys_first.saturating_sub(task.first) * group;
        let seen = |row: usize| (task.first + row / group + 1 - keys_first).min(KEYS);
        while row + TILE_ROWS <= rows {
            let seen = std::array::from_fn(|i| seen(row + i));
            self.tile::<TILE_ROWS>(row, seen, values);
            row += TILE_ROWS;
        }
        while row < rows {
            let seen = [seen(row)];
            self.tile::<1>(row, seen, values);
            row += 1;
        }
    }

    /// Rows `row..row + R` meet the turned keys, of which each sees the first `seen`.
    #[inline(always)]
    fn tile<const R: usize>(&mut self, row: usize, seen: [usize; R], values: &[f32]) {
        let dim = self.dim;
        let queries: [&[f32]; R] =
            std::array::from_fn(|i| &self.queries[(row + i) * dim..(row + i + 1) * dim]);
        let mut scores = [[0.0f32; KEYS]; R];
        for (d, keys) in self.turned.iter().enumerate() {
            for i in 0..R {
                let query = queries[i][d];
                for lane in 0..KEYS {
                    scores[i][lane] = query.mul_add(keys[lane], scores[i][lane]);
                }
            }
        }
        for i in 0..R {
            self.weigh(row + i, seen[i], &mut scores[i]);
        }
        // Behind the last token lie whatever bytes the page held before; not even times zero may they take part.
        let met = seen[R - 1];
        let mixed = &mut self.mixed[row * dim..(row + R) * dim];
        for at in (0..dim).step_by(LANES) {
            let mut sums = [[0.0f32; LANES]; R];
            for i in 0..R {
                sums[i].copy_from_slice(&mixed[i * dim + at..i * dim + at + LANES]);
            }
            for (key, value) in values.chunks_exact(dim).take(met).enumerate() {
                let value: &[f32; LANES] = value[at..at + LANES].try_into().expect("LANES divides a head");
                for i in 0..R {
                    let weight = scores[i][key];
                    for lane in 0..LANES {
                        sums[i][lane] = weight.mul_add(value[lane], sums[i][lane]);
                    }
                }
            }
            for i in 0..R {
                mixed[i * dim + at..i * dim + at + LANES].copy_from_slice(&sums[i]);
            }
        }
    }

    /// Turns scores into weights relative to the running maximum, and what was met before to the new one.
    #[inline(always)]
    fn weigh(&mut self, row: usize, seen: usize, scores: &mut [f32; KEYS]) {
        let mut maximum = self.maximum[row];
        for (key, score) in scores.iter_mut().enumerate() {
            *score = if key < seen { *score } else { f32::NEG_INFINITY };
            maximum = if *score > maximum { *score } else { maximum };
        }
        for score in scores.iter_mut() {
            *score = exp(*score - maximum);
        }
        if maximum > self.maximum[row] {
            let shrink = exp(self.maximum[row] - maximum);
            self.total[row] *= shrink;
            for mixed in &mut self.mixed[row * self.dim..(row + 1) * self.dim] {
                *mixed *= shrink;
            }
            self.maximum[row] = maximum;
        }
        self.total[row] += sum(scores);
    }

    fn finish(mut self) -> Vec<f32> {
        for (mixed, total) in self.mixed.chunks_exact_mut(self.dim).zip(&self.total) {
            let scale = 1.0 / total;
            // Adding zero makes a negative zero positive, whose sign could tell how rows were grouped.
            mixed.iter_mut().for_each(|value| *value = *value * scale + 0.0);
        }
        self.mixed
    }
}
