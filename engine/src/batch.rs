//! What the next step computes: a pure function of what runs, what waits and the limits.
//!
//! Every running request that only needs its next token gets it, oldest first; what remains of the step's tokens
//! goes to prompts, oldest first, cut at page boundaries. A request that needs a page when none is to be had takes
//! those of the youngest. Nothing overtakes in the queue, so nothing starves: the oldest request always goes on,
//! ends, and another becomes the oldest.

#[cfg(test)]
mod tests;

use crate::request::RequestId;

/// Limits of every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Requests that hold pages at once.
    pub running_max: usize,
    /// Tokens of a step. At least `running_max` plus a page, so that prompts go on beside full decoding.
    pub step_tokens_max: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
}

impl BatchLimits {
    /// The least `step_tokens_max` for these limits.
    pub fn step_tokens_least(running_max: usize, page_tokens: usize) -> usize {
        running_max + page_tokens
    }
}

/// A request that holds pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Which one.
    pub id: RequestId,
    /// Tokens known: prompt and generated. More than `computed`.
    pub tokens: usize,
    /// Tokens whose KV is in its pages.
    pub computed: usize,
    /// Pages that it holds.
    pub pages: usize,
    /// Pages that become available when it is preempted.
    pub pages_own: usize,
    /// Whether its pages are still being loaded, so that it can neither compute nor be preempted.
    pub loading: bool,
}

/// A request that waits for pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Which one.
    pub id: RequestId,
    /// Available pages that admitting it takes, idle ones that hold its blocks included.
    pub pages: usize,
}

/// All that a plan depends on. Oldest first.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Requests that hold pages.
    pub running: &'a [Running],
    /// Requests that wait.
    pub waiting: &'a [Waiting],
    /// Pages that can be taken.
    pub pages_available: usize,
}

/// Tokens of one request to compute in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Which one.
    pub id: RequestId,
    /// How many tokens, from the first that is not computed.
    pub tokens: usize,
}

/// What to do, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Running requests that give their pages back and wait again, before all others.
    pub preempt: Vec<RequestId>,
    /// Running requests to compute, each once. One that has no page for its first token takes one.
    pub work: Vec<Work>,
    /// Waiting requests to be given pages, from the front of the queue. They can be computed from the next step on.
    pub admit: Vec<RequestId>,
}

/// Plans one step.
pub fn plan(limits: &BatchLimits, view: View<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut running = view.running.to_vec();
    let mut available = view.pages_available;
    let mut budget = limits.step_tokens_max;
    let mut index = 0;
    while index < running.len() {
        let request = running[index];
        if is_decoding(&request) && budget > 0 {
            let grows = request.pages * limits.page_tokens == request.computed;
            if grows && available == 0 {
                available += preempt_youngest(&mut running, index, &mut plan);
            }
            if !grows || available > 0 {
                available -= usize::from(grows);
                budget -= 1;
                plan.work.push(Work { id: request.id, tokens: 1 });
            }
        }
        index += 1;
    }
    for request in running.iter().filter(|request| !request.loading && !is_decoding(request)) {
        let tokens = prompt_part(limits, request, budget);
        if tokens > 0 {
            budget -= tokens;
            plan.work.push(Work { id: request.id, tokens });
        }
    }
    // After a preemption the pages are needed by those that run.
    if plan.preempt.is_empty() {
        let mut places = limits.running_max.saturating_sub(running.len());
        for request in view.waiting {
            if places == 0 || request.pages > available {
                break;
            }
            places -= 1;
            available -= request.pages;
            plan.admit.push(request.id);
        }
    }
    plan
}

fn is_decoding(request: &Running) -> bool {
    !request.loading && request.computed + 1 == request.tokens
}

/// Preempts requests younger than the one at `index` until a page is available, youngest first.
fn preempt_youngest(running: &mut Vec<Running>, index: usize, plan: &mut Plan) -> usize {
    let mut available = 0;
    while available == 0 {
        let Some(at) = (index + 1..running.len()).rev().find(|&at| !running[at].loading) else { break };
        let victim = running.remove(at);
        available += victim.pages_own;
        plan.preempt.push(victim.id);
    }
    available
}

/// Tokens of a prompt for `budget`, ending at its end or at a page boundary.
fn prompt_part(limits: &BatchLimits, request: &Running, budget: usize) -> usize {
    let left = request.tokens - request.computed;
    if left <= budget {
        return left;
    }
    let end = request.computed + budget;
    (end - end % limits.page_tokens).saturating_sub(request.computed)
}
