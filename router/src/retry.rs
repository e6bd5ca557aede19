//! How often requests may be sent again, so that retries never become the load that keeps a fleet down.

use std::sync::{Mutex, PoisonError};

/// Endpoints that one request is sent to at most.
pub const TRIES_MAX: usize = 3;
/// What a request adds to the budget, in thousandths of a retry.
const DEPOSIT_MILLI: u32 = 200;
/// What the budget holds at most, and at the start, in thousandths of a retry.
const BALANCE_MILLI_MAX: u32 = 20_000;

/// Retries that may still be made: a fifth of the requests, and a reserve of 20.
#[derive(Debug)]
pub struct Budget {
    balance_milli: Mutex<u32>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { balance_milli: Mutex::new(BALANCE_MILLI_MAX) }
    }
}

impl Budget {
    /// A request has come.
    pub fn deposit(&self) {
        self.with(|balance| *balance = (*balance + DEPOSIT_MILLI).min(BALANCE_MILLI_MAX));
    }

    /// Takes one retry, if there is one left.
    pub fn withdraw(&self) -> bool {
        self.with(|balance| match balance.checked_sub(1000) {
            Some(rest) => {
                *balance = rest;
                true
            }
            None => false,
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut u32) -> T) -> T {
        act(&mut self.balance_milli.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_reserve_and_then_a_share_of_the_requests() {
        let budget = Budget::default();
        let spent = (0..100).filter(|_| budget.withdraw()).count();
        assert_eq!(spent, 20);
        let spent = (0..100).filter(|_| {
            budget.deposit();
            budget.withdraw()
        });
        assert_eq!(spent.count(), 20);
    }
}
