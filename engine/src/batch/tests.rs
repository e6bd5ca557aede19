//! Properties of every plan, and of many plans in a row.

use proptest::prelude::*;

use super::*;

const PAGE: usize = 16;

fn limits(running_max: usize, extra: usize) -> BatchLimits {
    let step_tokens_max = BatchLimits::step_tokens_least(running_max, PAGE) + extra;
    BatchLimits { running_max, step_tokens_max, page_tokens: PAGE }
}

fn running(id: u64, tokens: usize, computed: usize, pages: usize) -> Running {
    Running { id: RequestId(id), tokens, computed, pages, pages_own: pages, loading: false }
}

fn view<'a>(running: &'a [Running], waiting: &'a [Waiting], pages_available: usize) -> View<'a> {
    View { running, waiting, pages_available }
}

#[test]
fn decoding_goes_before_prompts_and_prompts_end_at_pages() {
    let running = [running(1, 1000, 0, 63), running(2, 40, 39, 3), running(3, 500, 0, 32)];
    let plan = plan(&limits(4, 44), view(&running, &[], 0));
    let work = [Work { id: RequestId(2), tokens: 1 }, Work { id: RequestId(1), tokens: 48 }];
    assert_eq!(plan.work, work);
}

#[test]
fn a_short_rest_of_a_prompt_leaves_room_for_the_next() {
    let running = [running(1, 20, 16, 2), running(2, 500, 0, 32)];
    let plan = plan(&limits(2, 46), view(&running, &[], 0));
    let work = [Work { id: RequestId(1), tokens: 4 }, Work { id: RequestId(2), tokens: 48 }];
    assert_eq!(plan.work, work);
}

#[test]
fn a_page_is_taken_from_the_youngest() {
    let running = [running(1, 33, 32, 2), running(2, 20, 19, 2), running(3, 20, 19, 2)];
    let plan = plan(&limits(4, 0), view(&running, &[], 0));
    assert_eq!(plan.preempt, [RequestId(3)]);
    assert_eq!(plan.work.len(), 2);
}

#[test]
fn what_is_loading_neither_computes_nor_gives_pages() {
    let mut loading = running(2, 100, 0, 7);
    loading.loading = true;
    let running = [running(1, 33, 32, 2), loading];
    assert_eq!(plan(&limits(4, 0), view(&running, &[], 0)), Plan::default());
    assert_eq!(plan(&limits(4, 0), view(&running, &[], 1)).work.len(), 1);
}

#[test]
fn nothing_overtakes_in_the_queue() {
    let waiting = [(1, 2), (2, 9), (3, 1)].map(|(id, pages)| Waiting { id: RequestId(id), pages });
    let plan = plan(&limits(4, 0), view(&[], &waiting, 8));
    assert_eq!(plan.admit, [RequestId(1)]);
}

/// A request of the simulated engine: prompt, then so many tokens.
#[derive(Debug, Clone)]
struct Sim {
    id: RequestId,
    prompt: usize,
    generated: usize,
    wanted: usize,
    computed: usize,
    pages: usize,
    loading: u8,
}

impl Sim {
    fn tokens(&self) -> usize {
        self.prompt + self.generated
    }
}

fn sims() -> impl Strategy<Value = Vec<Sim>> {
    let sim = (1usize..200, 1usize..40, 0u8..4);
    prop::collection::vec(sim, 1..12).prop_map(|sims| {
        let sim = |((prompt, wanted, loading), id)| Sim {
            id: RequestId(id),
            prompt,
            generated: 0,
            wanted,
            computed: 0,
            pages: 0,
            loading,
        };
        sims.into_iter().zip(1..).map(sim).collect()
    })
}

/// Carries out a plan as the step loop does, without pages that are shared.
fn carry_out(plan: &Plan, running: &mut Vec<Sim>, waiting: &mut Vec<Sim>, available: &mut usize) {
    for id in &plan.preempt {
        let at = running.iter().position(|r| r.id == *id).expect("only running requests are preempted");
        let mut sim = running.remove(at);
        assert_eq!(sim.loading, 0);
        *available += sim.pages;
        (sim.pages, sim.computed) = (0, 0);
        waiting.insert(0, sim);
    }
    for work in &plan.work {
        let sim = running.iter_mut().find(|r| r.id == work.id).expect("only running requests work");
        assert_eq!(sim.loading, 0);
        assert!(work.tokens >= 1 && sim.computed + work.tokens <= sim.tokens());
        if sim.computed + work.tokens < sim.tokens() {
            assert_eq!((sim.computed + work.tokens) % PAGE, 0, "a prompt is cut at pages");
        }
        if sim.computed + work.tokens > sim.pages * PAGE {
            assert_eq!(work.tokens, 1);
            *available = available.checked_sub(1).expect("no page is promised twice");
            sim.pages += 1;
        }
        sim.computed += work.tokens;
        sim.generated += usize::from(sim.computed == sim.tokens());
    }
    for id in &plan.admit {
        let mut sim = waiting.remove(0);
        assert_eq!(sim.id, *id, "admitted from the front");
        sim.pages = sim.tokens().div_ceil(PAGE);
        *available = available.checked_sub(sim.pages).expect("no page is promised twice");
        running.push(sim);
    }
    running.retain(|sim| {
        let done = sim.generated >= sim.wanted;
        *available += if done { sim.pages } else { 0 };
        !done
    });
    for sim in running.iter_mut() {
        sim.loading = sim.loading.saturating_sub(1);
    }
}

proptest! {
    #[test]
    fn limits_hold_and_every_request_ends(sims in sims(), running_max in 1usize..5, extra in 0usize..64, spare in 0usize..6) {
        let limits = limits(running_max, extra);
        let longest = sims.iter().map(|s| (s.prompt + s.wanted).div_ceil(PAGE)).max().expect("some");
        let pages = longest + spare;
        let mut available = pages;
        let (mut running, mut waiting): (Vec<Sim>, Vec<Sim>) = (vec![], sims);
        for _ in 0..20_000 {
            if running.is_empty() && waiting.is_empty() {
                break;
            }
            // Preempted requests are older than those behind them, but go to the end of the running ones.
            running.sort_by_key(|sim| sim.id);
            let shown: Vec<Running> = running.iter().map(|s| Running {
                id: s.id, tokens: s.tokens(), computed: s.computed, pages: s.pages, pages_own: s.pages,
                loading: s.loading > 0,
            }).collect();
            let queue: Vec<Waiting> =
                waiting.iter().map(|s| Waiting { id: s.id, pages: s.tokens().div_ceil(PAGE) }).collect();
            let plan = plan(&limits, view(&shown, &queue, available));
            prop_assert!(plan.work.iter().map(|w| w.tokens).sum::<usize>() <= limits.step_tokens_max);
            let distinct: std::collections::BTreeSet<_> = plan.work.iter().map(|w| w.id).collect();
            prop_assert_eq!(distinct.len(), plan.work.len(), "each request once");
            if let Some(oldest) = shown.iter().find(|s| !s.loading) {
                let blocked = shown.iter().any(|s| s.loading);
                prop_assert!(blocked || plan.work.iter().any(|w| w.id == oldest.id), "the oldest goes on");
            }
            carry_out(&plan, &mut running, &mut waiting, &mut available);
            prop_assert!(running.len() <= limits.running_max);
            let held: usize = running.iter().map(|s| s.pages).sum();
            prop_assert_eq!(held + available, pages, "pages are neither lost nor doubled");
        }
        prop_assert!(running.is_empty() && waiting.is_empty(), "everything ends");
    }
}
