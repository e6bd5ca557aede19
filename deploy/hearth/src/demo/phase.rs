//! The phases: what each does, why, and what has to be seen for it to have shown that.

use crate::client::chat::Usage;

/// What happens, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nobody has seen the document.
    Cold,
    /// The engine that has just seen it is asked again.
    SameEngine,
    /// The engine that has not is asked.
    OtherEngine,
    /// The first engine was killed and started again.
    EngineKilled,
    /// The store node and the second engine were killed and started again.
    StoreKilled,
    /// The store node is dead, the first engine is fresh.
    StoreDead,
}

/// Where the tokens of a prompt have to come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Computed,
    Engine,
    Pinned,
    Nvme,
}

/// A phase did not show what it claims.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    /// The prompt came from elsewhere.
    #[error("{tokens} of {prompt_tokens} prompt tokens were {what}, at least {tokens_min} had to be")]
    TooFew {
        /// How the tokens should have been had.
        what: &'static str,
        /// How many were.
        tokens: u64,
        /// How many had to be.
        tokens_min: u64,
        /// All of them.
        prompt_tokens: u64,
    },
    /// Something was loaded that cannot have been there.
    #[error("{tokens} prompt tokens were loaded from {tier}, where nothing can be found in this phase")]
    Unexpected {
        /// From where.
        tier: &'static str,
        /// How many.
        tokens: u64,
    },
    /// A damaged block was not noticed.
    #[error("a damaged block was read and no miss with reason \"corrupt\" was counted")]
    NotCounted,
}

impl Phase {
    /// All of them, in order.
    pub(crate) const ALL: [Self; 6] = [
        Self::Cold,
        Self::SameEngine,
        Self::OtherEngine,
        Self::EngineKilled,
        Self::StoreKilled,
        Self::StoreDead,
    ];

    /// Its letter.
    pub(crate) fn letter(self) -> char {
        match self {
            Self::Cold => 'a',
            Self::SameEngine => 'b',
            Self::OtherEngine => 'c',
            Self::EngineKilled => 'd',
            Self::StoreKilled => 'e',
            Self::StoreDead => 'f',
        }
    }

    /// Its name in the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::SameEngine => "warm, same engine",
            Self::OtherEngine => "warm, other engine",
            Self::EngineKilled => "engine killed",
            Self::StoreKilled => "store killed",
            Self::StoreDead => "store dead",
        }
    }

    /// What happens and why it matters, for a person who sees this for the first time.
    pub(crate) fn explanation(self) -> [&'static str; 2] {
        match self {
            Self::Cold => [
                "Nobody has asked about the document yet: engine-1 has to compute the KV cache of all of it.",
                "Without a shared cache every engine pays this price, and pays it again after every restart.",
            ],
            Self::SameEngine => [
                "The same engine is asked again. Its own memory still holds the document's KV cache,",
                "so that only the last tokens of the prompt are computed. Most engines can do this much.",
            ],
            Self::OtherEngine => [
                "engine-2 has never seen the document. It takes what engine-1 left in the store node, through",
                "shared memory, and checks every block on arrival. So any engine can take any user.",
            ],
            Self::EngineKilled => [
                "engine-1 gets a SIGKILL, as in a crash. While it is down the router sends everyone to engine-2.",
                "Then it starts again with empty memory, and is warm at once: the cache belongs to the store node.",
            ],
            Self::StoreKilled => [
                "Now the store node gets a SIGKILL, and engine-2 with it: all they had in memory is gone.",
                "What had reached the disk is found again, by the headers of the blocks, and checked when read.",
            ],
            Self::StoreDead => [
                "The store node is killed and stays dead, and engine-1 starts again with empty memory.",
                "It computes the document itself: as slow as the first time, but right, and no request fails.",
            ],
        }
    }

    /// Index of the engine that the first user is sent to.
    pub(crate) fn engine(self) -> usize {
        match self {
            Self::Cold | Self::SameEngine | Self::EngineKilled | Self::StoreDead => 0,
            Self::OtherEngine | Self::StoreKilled => 1,
        }
    }

    /// Whether the other users are sent to the same engine too, because a later phase needs the other
    /// one not to have seen the document.
    pub(crate) fn keeps_to_engine(self) -> bool {
        matches!(self, Self::Cold | Self::SameEngine)
    }

    /// Whether the first user's request shows what the phase claims. `damaged` says that a block on disk
    /// was damaged before.
    pub(crate) fn check_first(self, usage: &Usage, damaged: bool) -> Result<(), Broken> {
        let most = usage.prompt_tokens * 9 / 10;
        match self {
            Self::Cold => at_least(usage, Source::Computed, usage.prompt_tokens),
            Self::SameEngine => at_least(usage, Source::Engine, most),
            Self::OtherEngine | Self::EngineKilled => {
                nothing_from(usage, Source::Engine)?;
                at_least(usage, Source::Pinned, most)
            }
            Self::StoreKilled => {
                nothing_from(usage, Source::Engine)?;
                // A damaged block ends what can be loaded; the rest is computed.
                let loaded_min = if damaged { usage.prompt_tokens / 2 } else { most };
                at_least(usage, Source::Nvme, loaded_min)?;
                at_least(usage, Source::Computed, if damaged { usage.prompt_tokens / 10 } else { 1 })
            }
            Self::StoreDead => {
                self.check_other(usage)?;
                at_least(usage, Source::Computed, usage.prompt_tokens)
            }
        }
    }

    /// Whether another user's request contradicts what the phase claims.
    pub(crate) fn check_other(self, usage: &Usage) -> Result<(), Broken> {
        if self == Self::StoreDead {
            nothing_from(usage, Source::Pinned)?;
            nothing_from(usage, Source::Nvme)?;
        }
        Ok(())
    }
}

impl Source {
    fn tokens(self, usage: &Usage) -> u64 {
        let loaded = &usage.hearth.loaded_tokens;
        match self {
            Self::Computed => usage.hearth.computed_tokens,
            Self::Engine => loaded.engine,
            Self::Pinned => loaded.pinned,
            Self::Nvme => loaded.nvme,
        }
    }

    fn tier(self) -> &'static str {
        match self {
            Self::Computed => "nowhere",
            Self::Engine => "the engine's own pages",
            Self::Pinned => "the store's memory",
            Self::Nvme => "the store's NVMe",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Computed => "computed",
            Self::Engine => "loaded from the engine's own pages",
            Self::Pinned => "loaded from the store's memory",
            Self::Nvme => "loaded from the store's NVMe",
        }
    }
}

fn at_least(usage: &Usage, source: Source, tokens_min: u64) -> Result<(), Broken> {
    let tokens = source.tokens(usage);
    if tokens >= tokens_min {
        return Ok(());
    }
    Err(Broken::TooFew { what: source.done(), tokens, tokens_min, prompt_tokens: usage.prompt_tokens })
}

fn nothing_from(usage: &Usage, source: Source) -> Result<(), Broken> {
    match source.tokens(usage) {
        0 => Ok(()),
        tokens => Err(Broken::Unexpected { tier: source.tier(), tokens }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::chat::{Loaded, Sources};

    fn usage(computed_tokens: u64, engine: u64, pinned: u64, nvme: u64) -> Usage {
        let loaded_tokens = Loaded { engine, pinned, nvme };
        let prompt_tokens = computed_tokens + engine + pinned + nvme;
        Usage { prompt_tokens, completion_tokens: 24, hearth: Sources { computed_tokens, loaded_tokens } }
    }

    #[test]
    fn each_phase_accepts_what_it_is_there_to_show() {
        for (phase, seen) in [
            (Phase::Cold, usage(4500, 0, 0, 0)),
            (Phase::SameEngine, usage(4, 4496, 0, 0)),
            (Phase::OtherEngine, usage(4, 0, 4496, 0)),
            (Phase::EngineKilled, usage(4, 0, 4496, 0)),
            (Phase::StoreKilled, usage(4, 0, 0, 4496)),
            (Phase::StoreDead, usage(4500, 0, 0, 0)),
        ] {
            assert_eq!(phase.check_first(&seen, false), Ok(()), "{phase:?}");
        }
        assert_eq!(Phase::StoreKilled.check_first(&usage(1200, 0, 0, 3300), true), Ok(()));
    }

    #[test]
    fn each_phase_refuses_what_would_be_a_lie() {
        for (phase, seen) in [
            (Phase::Cold, usage(100, 0, 4400, 0)),
            (Phase::SameEngine, usage(4, 0, 4496, 0)),
            (Phase::OtherEngine, usage(4, 4496, 0, 0)),
            (Phase::OtherEngine, usage(4500, 0, 0, 0)),
            (Phase::EngineKilled, usage(4, 4496, 0, 0)),
            (Phase::StoreKilled, usage(4, 0, 4496, 0)),
            (Phase::StoreKilled, usage(4500, 0, 0, 0)),
            (Phase::StoreDead, usage(4484, 0, 16, 0)),
            (Phase::StoreDead, usage(4, 4496, 0, 0)),
        ] {
            assert!(phase.check_first(&seen, false).is_err(), "{phase:?} {seen:?}");
        }
    }

    #[test]
    fn a_damaged_block_has_to_cost_something() {
        assert!(Phase::StoreKilled.check_first(&usage(4, 0, 0, 4496), true).is_err());
        assert!(Phase::StoreKilled.check_first(&usage(4500, 0, 0, 0), true).is_err());
    }

    #[test]
    fn nobody_loads_from_a_dead_store() {
        assert_eq!(Phase::StoreDead.check_other(&usage(10, 4490, 0, 0)), Ok(()));
        assert!(Phase::StoreDead.check_other(&usage(10, 0, 0, 4490)).is_err());
    }

    #[test]
    fn explanations_fit_the_terminal() {
        for phase in Phase::ALL {
            assert!(phase.explanation().iter().all(|line| line.len() <= 108), "{phase:?}");
        }
    }
}
