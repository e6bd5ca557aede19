//! Properties of the decision: what must hold for any fleet, any load and any match.

use hearth_proto::v1::Tier;
use proptest::prelude::*;

use super::*;
use crate::fleet::Models;
use crate::index::{HolderMatch, StoreSpan};

const BLOCK_TOKENS: u64 = 16;

fn endpoint(n: usize) -> EndpointStatus {
    EndpointStatus {
        id: EndpointId::new(n),
        authority: format!("10.0.0.{n}:80").into(),
        state: State::Up,
        models: Models::named(["m"]),
    }
}

fn matched(tokens: u64, held: &[usize], store: Vec<StoreSpan>) -> PromptView {
    let engines = held.iter().enumerate().filter(|(_, blocks)| **blocks > 0);
    let engines = engines
        .map(|(n, &blocks)| HolderMatch { holder: format!("http://10.0.0.{n}:80/").into(), blocks })
        .collect();
    PromptView::Matched { tokens, chains: vec![Chain::new(BLOCK_TOKENS, Match { engines, store })] }
}

fn ask(prompt: &PromptView) -> Ask<'_> {
    Ask { model: "m", prompt, subset: None, tried: &[] }
}

fn pick(prompt: &PromptView, endpoints: &[EndpointStatus], loads: &[Load]) -> Result<Decision, Refusal> {
    decide(&ask(prompt), &candidates(endpoints, loads), &Weights::default())
}

fn candidates<'a>(endpoints: &'a [EndpointStatus], loads: &[Load]) -> Vec<Candidate<'a>> {
    endpoints.iter().zip(loads).map(|(endpoint, &load)| Candidate { endpoint, load }).collect()
}

fn any_load() -> impl Strategy<Value = Load> {
    (0u64..50, 0u64..20_000, 0u64..1000).prop_map(|(requests, queued_tokens, picked)| Load {
        requests,
        queued_tokens: if requests == 0 { 0 } else { queued_tokens },
        picked,
    })
}

fn any_endpoint(n: usize) -> impl Strategy<Value = EndpointStatus> {
    let state = prop_oneof![3 => Just(State::Up), 1 => Just(State::Down), 1 => Just(State::Draining)];
    let models = prop_oneof![
        3 => Just(Models::named(["m"])),
        1 => Just(Models::named(["other"])),
        1 => Just(Models::unknown())
    ];
    (state, models).prop_map(move |(state, models)| EndpointStatus { state, models, ..endpoint(n) })
}

fn any_fleet() -> impl Strategy<Value = Vec<(EndpointStatus, Load, usize)>> {
    (1usize..12)
        .prop_flat_map(|n| (0..n).map(|i| (any_endpoint(i), any_load(), 0usize..300)).collect::<Vec<_>>())
}

fn any_store() -> impl Strategy<Value = Vec<StoreSpan>> {
    (0usize..300, 0usize..300).prop_map(|(a, b)| {
        let span = |first, end, tier| StoreSpan { first, end, tier };
        [span(0, a, Tier::Pinned), span(a, a + b, Tier::Nvme)]
            .into_iter()
            .filter(|s| s.end > s.first)
            .collect()
    })
}

proptest! {
    #[test]
    fn only_what_may_be_picked_is_picked(fleet in any_fleet(), tokens in 1u64..5000, subset in prop::option::of(0usize..12), tried in prop::collection::vec((0usize..12).prop_map(EndpointId::new), 0..3)) {
        let held: Vec<usize> = fleet.iter().map(|(_, _, held)| *held).collect();
        let prompt = matched(tokens, &held, vec![]);
        let subset = subset.map(|n| Subset::parse(&format!("10.0.0.{n}:80")).expect("not empty"));
        let ask = Ask { model: "m", prompt: &prompt, subset: subset.as_ref(), tried: &tried };
        let fleet: Vec<_> = fleet.iter().map(|(endpoint, load, _)| Candidate { endpoint, load: *load }).collect();
        let may = |c: &&Candidate<'_>| c.endpoint.state == State::Up
            && c.endpoint.serves("m")
            && !tried.contains(&c.endpoint.id)
            && subset.as_ref().is_none_or(|s| s.contains(&c.endpoint.authority));
        match decide(&ask, &fleet, &Weights::default()) {
            Ok(decision) => {
                let picked = fleet.iter().find(|c| c.endpoint.id == decision.endpoint).expect("a candidate");
                prop_assert!(may(&picked));
                prop_assert_eq!(decision.explain.candidates, fleet.iter().filter(may).count());
            }
            Err(_) => prop_assert_eq!(fleet.iter().filter(may).count(), 0),
        }
    }

    #[test]
    fn more_match_never_costs_more(tokens in 1u64..5000, held in 0usize..300, more in 0usize..50, store in any_store(), load in any_load()) {
        let weights = Weights::default();
        let endpoint = endpoint(0);
        let candidate = Candidate { endpoint: &endpoint, load };
        let total = |held, store: Vec<StoreSpan>| cost(&matched(tokens, &[held], store), &candidate, &weights).total_millitokens(&weights);
        prop_assert!(total(held + more, store.clone()) <= total(held, store.clone()));
        prop_assert!(total(held, store) <= total(held, vec![]));
    }

    #[test]
    fn more_load_always_costs_more(tokens in 1u64..5000, held in 0usize..300, load in any_load(), more in 1u64..1000) {
        let weights = Weights::default();
        let endpoint = endpoint(0);
        let prompt = matched(tokens, &[held], vec![]);
        let total = |load| cost(&prompt, &Candidate { endpoint: &endpoint, load }, &weights).total_millitokens(&weights);
        let (busier, deeper) = (Load { requests: load.requests + more, ..load }, Load { queued_tokens: load.queued_tokens + more, ..load });
        prop_assert!(total(busier) > total(load));
        prop_assert!(total(deeper) > total(load));
    }

    #[test]
    fn every_token_is_counted_once(tokens in 2u64..5000, held in 0usize..300, store in any_store()) {
        let endpoint = endpoint(0);
        let candidate = Candidate { endpoint: &endpoint, load: Load::default() };
        let cost = cost(&matched(tokens, &[held], store), &candidate, &Weights::default());
        let sum = cost.computed + cost.engine + cost.pinned + cost.nvme;
        prop_assert!(sum == tokens || (sum == tokens + 1 && cost.computed == 1));
    }
}

#[test]
fn the_longest_match_wins_until_its_queue_outweighs_it() {
    let endpoints = [endpoint(0), endpoint(1), endpoint(2)];
    let prompt = matched(4000, &[0, 240, 100], vec![]);
    let mut loads = [Load::default(); 3];
    assert_eq!(pick(&prompt, &endpoints, &loads).expect("able").endpoint, endpoints[1].id);
    loads[1] = Load { requests: 1, queued_tokens: 2000, picked: 1 };
    assert_eq!(pick(&prompt, &endpoints, &loads).expect("able").endpoint, endpoints[1].id);
    loads[1] = Load { requests: 2, queued_tokens: 4000, picked: 2 };
    assert_eq!(pick(&prompt, &endpoints, &loads).expect("able").endpoint, endpoints[2].id);
}

#[test]
fn what_the_store_has_counts_for_every_endpoint() {
    let endpoints = [endpoint(0), endpoint(1)];
    let store = vec![StoreSpan { first: 0, end: 250, tier: Tier::Pinned }];
    let prompt = matched(4000, &[250, 0], store);
    let idle = [Load::default(); 2];
    assert_eq!(pick(&prompt, &endpoints, &idle).expect("able").endpoint, endpoints[0].id);
    // A moderate queue: loading 4,000 tokens elsewhere is then cheaper than waiting, computing them would not be.
    let busy = [Load { requests: 2, queued_tokens: 1000, picked: 2 }, Load::default()];
    let decision = pick(&prompt, &endpoints, &busy).expect("able");
    assert_eq!(decision.endpoint, endpoints[1].id);
    assert_eq!(
        decision.explain.to_string(),
        "match=4000/4000 engine=0 store=4000 load=0 requests=0 candidates=2"
    );
    assert_eq!(
        pick(&matched(4000, &[250, 0], vec![]), &endpoints, &busy).expect("able").endpoint,
        endpoints[0].id
    );
}

#[test]
fn equals_take_turns() {
    let endpoints = [endpoint(0), endpoint(1), endpoint(2)];
    let prompt = PromptView::Unmatched { tokens: 100, why: Ignorance::NoTokenizer };
    let mut loads = [Load::default(); 3];
    let mut order = Vec::new();
    for turn in 1..=6 {
        let decision = pick(&prompt, &endpoints, &loads).expect("able");
        loads[decision.endpoint.index()].picked = turn;
        order.push(decision.endpoint.index());
    }
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn a_burst_for_one_document_spreads_once_it_queues() {
    let endpoints = [endpoint(0), endpoint(1)];
    let prompt = matched(4000, &[249, 0], vec![StoreSpan { first: 0, end: 249, tier: Tier::Pinned }]);
    let mut loads = [Load::default(); 2];
    for turn in 1..=20 {
        let decision = pick(&prompt, &endpoints, &loads).expect("able");
        let load = &mut loads[decision.endpoint.index()];
        *load = Load {
            requests: load.requests + 1,
            queued_tokens: load.queued_tokens + decision.work_tokens,
            picked: turn,
        };
    }
    assert!(loads[0].requests > loads[1].requests && loads[1].requests > 0, "{loads:?}");
}

#[test]
fn the_best_of_several_identities_counts() {
    let endpoints = [endpoint(0)];
    let one = matched(320, &[5], vec![]);
    let PromptView::Matched { chains, .. } = &one else { unreachable!("made so") };
    let chains = vec![Chain::new(BLOCK_TOKENS, Match::default()), chains[0].clone()];
    let prompt = PromptView::Matched { tokens: 320, chains };
    let decision = pick(&prompt, &endpoints, &[Load::default()]).expect("able");
    assert_eq!(decision.explain.cost.engine, 80);
}

#[test]
fn refusals_say_what_is_missing() {
    let prompt = PromptView::Unmatched { tokens: 1, why: Ignorance::NoFeed };
    let down = EndpointStatus { state: State::Down, ..endpoint(0) };
    let other = EndpointStatus { models: Models::named(["other"]), ..endpoint(1) };
    let loads = [Load::default(); 2];
    let refused = |model, endpoints: &[EndpointStatus]| {
        decide(&Ask { model, ..ask(&prompt) }, &candidates(endpoints, &loads), &Weights::default())
            .expect_err("nobody can")
    };
    let both = [down.clone(), other];
    assert!(matches!(refused("m", &both), Refusal::NoEndpoint { known: 2, down: 1, elsewhere: 1, .. }));
    let served = vec!["m".to_owned(), "other".to_owned()];
    assert_eq!(refused("x", &both), Refusal::UnknownModel { model: "x".into(), served });
    let never_seen = EndpointStatus { models: Models::unknown(), ..down };
    assert!(matches!(refused("x", &[never_seen]), Refusal::NoEndpoint { known: 1, down: 1, .. }));
    assert!(matches!(refused("x", &[]), Refusal::NoEndpoint { known: 0, .. }));
}

#[test]
fn subsets_name_authorities_or_hosts() {
    let subset = Subset::parse(" 10.0.0.1:80, NODE-2 ,").expect("names two");
    assert!(subset.contains("10.0.0.1:80") && subset.contains("node-2:9000"));
    assert!(!subset.contains("10.0.0.1:81") && !subset.contains("node-3:9000"));
    assert_eq!(Subset::parse(" , "), None);
}
