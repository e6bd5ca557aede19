//! How busy each endpoint is, by this router's own count: what it sent and has not been answered yet.
//!
//! This is the only place where load is changed. A [`Reservation`] is made in the same step as the decision that it
//! follows, so that two requests that arrive together see each other, and gives back what it took when it is dropped.

use std::sync::{Arc, Mutex, PoisonError};

use crate::fleet::EndpointId;

/// What one endpoint has been given and has not finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that are not answered to their end.
    pub requests: u64,
    /// Work before the first byte, in tokens to compute, of the requests that have not sent it yet.
    pub queued_tokens: u64,
    /// When it was last picked, counted in requests.
    pub picked: u64,
}

/// The load of all endpoints.
#[derive(Debug)]
pub struct Loads {
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    loads: Vec<Load>,
    picks: u64,
}

/// Where a request goes and how much work that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Work before the first byte, in tokens to compute.
    pub tokens: u64,
}

/// A request's share of an endpoint's load. Dropping it gives the share back.
#[derive(Debug)]
pub struct Reservation {
    loads: Arc<Loads>,
    claim: Claim,
}

impl Loads {
    /// For so many endpoints, all idle.
    pub fn new(endpoints: usize) -> Self {
        Self { table: Mutex::new(Table { loads: vec![Load::default(); endpoints], picks: 0 }) }
    }

    /// Decides and reserves in one step. `decide` sees the load of every endpoint, by number; it must not block.
    ///
    /// # Errors
    /// Those of `decide`; then nothing is reserved.
    pub fn reserve<T, E>(
        self: &Arc<Self>,
        decide: impl FnOnce(&[Load]) -> Result<(Claim, T), E>,
    ) -> Result<(Reservation, T), E> {
        let mut table = self.lock();
        let (claim, outcome) = decide(&table.loads)?;
        table.picks += 1;
        let picked = table.picks;
        let load = &mut table.loads[claim.endpoint.index()];
        load.requests += 1;
        load.queued_tokens += claim.tokens;
        load.picked = picked;
        drop(table);
        Ok((Reservation { loads: Arc::clone(self), claim }, outcome))
    }

    /// The load of every endpoint, by number.
    pub fn snapshot(&self) -> Vec<Load> {
        self.lock().loads.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        // Sums are changed in one go, so a panic elsewhere leaves them right.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// The first byte has come: nothing of this request is queued any more.
    pub fn answered(&mut self) {
        let tokens = std::mem::take(&mut self.claim.tokens);
        let mut table = self.loads.lock();
        table.loads[self.claim.endpoint.index()].give_back(tokens);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut table = self.loads.lock();
        let load = &mut table.loads[self.claim.endpoint.index()];
        load.give_back(self.claim.tokens);
        load.requests = load.requests.checked_sub(1).expect("counted when it was reserved");
    }
}

impl Load {
    fn give_back(&mut self, tokens: u64) {
        self.queued_tokens = self.queued_tokens.checked_sub(tokens).expect("counted when it was reserved");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever happens to requests, and in whatever order they end, the load is the sum of those that are left.
        #[test]
        fn all_that_is_taken_is_given_back(steps in prop::collection::vec((0usize..3, 0u64..1000, any::<bool>(), any::<usize>()), 1..50)) {
            let loads = Arc::new(Loads::new(3));
            let mut held: Vec<(usize, u64, Reservation)> = Vec::new();
            for (endpoint, tokens, answered, which) in steps {
                let claim = Claim { endpoint: EndpointId::new(endpoint), tokens };
                let (mut reservation, ()) = loads.reserve(|_| Ok::<_, ()>((claim, ()))).expect("decided");
                if answered {
                    reservation.answered();
                }
                held.push((endpoint, if answered { 0 } else { tokens }, reservation));
                if which % 3 == 0 {
                    held.swap_remove(which % held.len());
                }
                for (endpoint, load) in loads.snapshot().into_iter().enumerate() {
                    let mine = || held.iter().filter(|(of, ..)| *of == endpoint);
                    prop_assert_eq!(load.requests, mine().count() as u64);
                    prop_assert_eq!(load.queued_tokens, mine().map(|(_, tokens, _)| tokens).sum::<u64>());
                }
            }
            held.clear();
            prop_assert!(loads.snapshot().iter().all(|load| (load.requests, load.queued_tokens) == (0, 0)));
        }
    }

    #[test]
    fn a_refusal_reserves_nothing() {
        let loads = Arc::new(Loads::new(1));
        assert_eq!(loads.reserve(|_| Err::<(Claim, ()), _>("no")).expect_err("refused"), "no");
        assert_eq!(loads.snapshot(), [Load::default()]);
    }
}
