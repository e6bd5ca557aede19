//! Causal attention of grouped query heads, straight over the KV pages.
//!
//! A query row meets the keys page by page in their absolute order, with a running maximum and sum (online
//! softmax). What a row computes depends on its own query, its position and the pages up to it; rows only share
//! the loads. That is why chunking, batching and threads cannot change a bit of the result.

mod tile;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::Segment;
use super::linear::Rows;
use super::math::LANES;
use crate::checkpoint::ModelConfig;
use crate::kv::pages::{PageId, Pages};
use tile::{Met, meet};

/// Keys are met in groups of this many, one lane each. Pages hold a multiple of it.
pub(crate) const KEYS: usize = LANES;
/// Tokens of one segment that a task computes: enough rows to make turning a page's keys worth it,
/// few enough that their state stays in the first-level cache.
const TASK_TOKENS: usize = 32;

/// Attention of all rows in one layer. `qkv` rows hold queries, then keys, then values; the keys and values
/// of these rows are in the pages already.
pub(super) fn attend(
    config: &ModelConfig,
    qkv: &Rows,
    segments: &[Segment<'_>],
    (layer, pages): (usize, &Pages),
) -> Rows {
    let tasks = tasks(config, segments);
    let run = |task: &Task<'_>| {
        let mut rows = RowStates::new(config, qkv, task);
        Arch::new().dispatch(Run { rows: &mut rows, pages, layer, task });
        rows.finish()
    };
    let results: Vec<Vec<f32>> = tasks.par_iter().map(run).collect();
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
struct RowStates {
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

impl RowStates {
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
    fn turn(&mut self, keys: &[f32]) {
        for (key, elements) in keys.chunks_exact(self.dim).enumerate() {
            for (turned, &element) in self.turned.iter_mut().zip(elements) {
                turned[key] = element;
            }
        }
    }

    /// All rows that see any of the keys at `keys_first` meet them, in tiles of four, two and one. Tiles have no
    /// influence on the result; the sums of four rows fill the registers of a machine with 16 vectors.
    #[inline(always)]
    fn meet<S: Simd>(&mut self, simd: S, values: &[f32], keys_first: usize, task: &Task<'_>) {
        let rows = task.tokens * self.group;
        let mut row = keys_first.saturating_sub(task.first) * self.group;
        while row < rows {
            row += match rows - row {
                4.. => self.tile::<S, 4>(simd, row, values, keys_first, task),
                2.. => self.tile::<S, 2>(simd, row, values, keys_first, task),
                _ => self.tile::<S, 1>(simd, row, values, keys_first, task),
            };
        }
    }

    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the loop variables of its only caller")]
    fn tile<S: Simd, const R: usize>(
        &mut self,
        simd: S,
        row: usize,
        values: &[f32],
        keys_first: usize,
        task: &Task<'_>,
    ) -> usize {
        let dim = self.dim;
        let seen = |row: usize| (task.first + row / self.group + 1 - keys_first).min(KEYS);
        let seen: [usize; R] = std::array::from_fn(|i| seen(row + i));
        let met = Met {
            queries: std::array::from_fn(|i| &self.queries[(row + i) * dim..(row + i + 1) * dim]),
            turned: &self.turned,
            values,
            seen,
        };
        let mixed = &mut self.mixed[row * dim..(row + R) * dim];
        meet(simd, &met, mixed, &mut self.maximum[row..row + R], &mut self.total[row..row + R]);
        R
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

/// Walks the pages of a task; compiled once for each width of vectors.
struct Run<'a> {
    rows: &'a mut RowStates,
    pages: &'a Pages,
    layer: usize,
    task: &'a Task<'a>,
}

impl WithSimd for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, pages, layer, task } = self;
        let (end, dim) = (task.first + task.tokens, rows.dim);
        for (index, &page) in task.pages.iter().enumerate() {
            let page_first = index * pages.page_tokens();
            let (keys, values) = pages.head(page, layer, task.kv_head);
            let groups = keys.chunks_exact(KEYS * dim).zip(values.chunks_exact(KEYS * dim));
            for (part, (keys, values)) in groups.enumerate() {
                let keys_first = page_first + part * KEYS;
                if keys_first >= end {
                    return;
                }
                rows.turn(keys);
                rows.meet(simd, values, keys_first, task);
            }
        }
    }
}
