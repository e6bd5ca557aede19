//! How large and how often a run measures.

use crate::machine;

const MIB: usize = 1 << 20;
/// Smallest working set: beyond the private caches of any core.
const WORKING_SET_BYTES_MIN: usize = 256 * MIB;
/// Largest working set: beyond this nothing changes but the time it takes to fill.
const WORKING_SET_BYTES_MAX: usize = 2048 * MIB;

/// How large and how often a run measures.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Whether the run only shows that everything works.
    pub quick: bool,
    /// Rounds that count.
    pub rounds: usize,
    /// Rounds before them that do not.
    pub warmup_rounds: usize,
    /// Bytes that a system walks through, source and destination each.
    pub working_set_bytes: usize,
    /// Bytes that a system moves in one round.
    pub round_bytes: usize,
}

impl Setting {
    /// Sizes for this machine: a working set of four times the last-level cache, as far as a sixteenth
    /// of the free memory allows (a suite holds several: sources, destinations, what peers keep).
    pub fn of_machine(quick: bool, rounds: usize) -> Self {
        let wanted = machine::last_level_cache_bytes().unwrap_or(0) * 4;
        let room = machine::memory_available_bytes().unwrap_or(0) / 16;
        let full = wanted.min(room).clamp(WORKING_SET_BYTES_MIN, WORKING_SET_BYTES_MAX);
        let working_set_bytes = if quick { WORKING_SET_BYTES_MIN } else { full.next_multiple_of(64 * MIB) };
        Self {
            quick,
            rounds,
            warmup_rounds: if quick { 1 } else { 3 },
            working_set_bytes,
            round_bytes: 128 * MIB,
        }
    }

    /// Rounds with and without count.
    pub fn rounds_total(&self) -> usize {
        self.warmup_rounds + self.rounds
    }
}
