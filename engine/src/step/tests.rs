//! Whole engines over the store in memory: whatever is found, lost, shared, preempted or slow, the tokens are the same
//! and the books are right.

use std::num::NonZeroUsize;

use hearth_connector::proto::identity::CacheIdentity;
use hearth_connector::proto::tenant::TenantSecret;
use hearth_connector::{Durability, Store, StoreConfig, Tier, fake};
use prometheus_client::registry::Registry;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::request::{GenEvent, GenRequest, GenStream, GenUsage, LoadedTokens, Sampling};
use crate::start::{Engine, EngineConfig};
use crate::testing;

const PAGE: usize = 16;

fn secret() -> TenantSecret {
    TenantSecret::from_bytes([3; 32])
}

fn open(shared: &fake::Shared, identity: CacheIdentity) -> Store {
    let tenant = "default".parse().expect("a name");
    Store::fake(shared, StoreConfig::new(None, tenant, secret(), identity, "http://127.0.0.1:1"))
}

/// An engine over a store, or without one, with some settings changed.
fn engine(shared: Option<&fake::Shared>, change: impl FnOnce(&mut EngineConfig)) -> Engine {
    let checkpoint = Checkpoint::open(&testing::checkpoint_dir()).expect("opens");
    let mut config = EngineConfig::new("tiny".to_owned(), secret());
    config.kv_bytes = 16 << 20;
    config.threads = NonZeroUsize::MIN;
    config.durability = Durability::Nvme;
    change(&mut config);
    let open = |identity| shared.map_or_else(Store::off, |shared| open(shared, identity));
    Engine::start(&checkpoint, config, open, &mut Registry::default()).expect("starts")
}

fn shared() -> fake::Shared {
    fake::Shared::new(64 << 20)
}

fn request(engine: &Engine, tokens: &[u32], new_tokens_max: usize) -> GenRequest {
    GenRequest {
        id: engine.handle().new_id(),
        tokens: tokens.to_vec(),
        new_tokens_max,
        sampling: Sampling::greedy(),
        stop_tokens: vec![],
        salt: None,
    }
}

fn submit(engine: &Engine, tokens: &[u32], new_tokens_max: usize) -> GenStream {
    engine.handle().submit(request(engine, tokens, new_tokens_max)).expect("is taken")
}

struct Output {
    tokens: Vec<u32>,
    reason: FinishReason,
    usage: GenUsage,
}

/// Reads a stream to its end and checks the order of its events.
fn collect(mut stream: GenStream) -> Output {
    let (mut tokens, mut prompt) = (vec![], None);
    loop {
        match stream.blocking_next().expect("a stream ends with its last event") {
            GenEvent::Prompt { usage } => {
                assert!(prompt.is_none() && tokens.is_empty(), "the prompt comes once and first");
                assert_eq!(usage.computed_tokens + usage.loaded.total(), usage.prompt_tokens);
                prompt = Some(usage);
            }
            GenEvent::Token { id } => {
                assert!(prompt.is_some(), "the prompt comes before tokens");
                tokens.push(id);
            }
            GenEvent::Finished { reason, usage } => {
                if let Some(prompt) = prompt {
                    assert_eq!(
                        (prompt.loaded, prompt.computed_tokens),
                        (usage.loaded, usage.computed_tokens)
                    );
                }
                assert!(stream.blocking_next().is_none(), "nothing follows the end");
                return Output { tokens, reason, usage };
            }
            GenEvent::Failed(error) => panic!("failed: {error}"),
        }
    }
}

fn run(engine: &Engine, tokens: &[u32], new_tokens_max: usize) -> Output {
    collect(submit(engine, tokens, new_tokens_max))
}

/// What a prompt gives with no store, no company and nothing cached.
fn reference(tokens: &[u32], new_tokens_max: usize) -> Vec<u32> {
    let engine = engine(None, |_| {});
    let output = run(&engine, tokens, new_tokens_max);
    assert_eq!(output.usage.loaded.total(), 0);
    engine.shutdown();
    output.tokens
}

fn asked(engine: &Engine) -> Vec<(Asked, u64)> {
    let hits = [Tier::Engine, Tier::Pinned, Tier::Nvme].map(Asked::Hit);
    let misses = Miss::ALL.iter().map(|miss| Asked::Miss(*miss));
    let counts =
        hits.into_iter().chain(misses).map(|asked| (asked, engine.store().metrics().asked_so_far(asked)));
    counts.filter(|(_, count)| *count > 0).collect()
}

#[test]
fn the_same_engine_computes_a_prompt_once() {
    let prompt = testing::tokens(100, 1);
    let expected = reference(&prompt, 10);
    let engine = engine(None, |_| {});
    let cold = run(&engine, &prompt, 10);
    let warm = run(&engine, &prompt, 10);
    assert_eq!((&cold.tokens, &warm.tokens), (&expected, &expected));
    assert_eq!((cold.reason, cold.usage.completion_tokens), (FinishReason::Length, 10));
    assert_eq!((cold.usage.computed_tokens, warm.usage.computed_tokens), (100, 4));
    assert_eq!(warm.usage.loaded, LoadedTokens { engine: 96, ..LoadedTokens::default() });
    assert_eq!(asked(&engine), [(Asked::Hit(Tier::Engine), 6), (Asked::Miss(Miss::Off), 6)]);
    engine.shutdown();
}

#[test]
fn a_prompt_of_whole_blocks_still_computes_its_last() {
    let prompt = testing::tokens(64, 2);
    let engine = engine(None, |_| {});
    let cold = run(&engine, &prompt, 3);
    let warm = run(&engine, &prompt, 3);
    assert_eq!(cold.tokens, warm.tokens);
    assert_eq!((warm.usage.loaded.engine, warm.usage.computed_tokens), (48, 16));
    engine.shutdown();
}

#[test]
fn generated_blocks_are_found_by_the_next_turn() {
    let prompt = testing::tokens(50, 3);
    let engine = engine(None, |_| {});
    let first = run(&engine, &prompt, 40);
    let turn: Vec<u32> = prompt.iter().chain(&first.tokens).copied().chain(testing::tokens(10, 4)).collect();
    let second = run(&engine, &turn, 8);
    // The KV of the last token was never needed; 89 tokens were computed, 5 blocks of them.
    assert_eq!(second.usage.loaded.engine, 80);
    assert_eq!(second.tokens, reference(&turn, 8));
    engine.shutdown();
}

#[test]
fn another_engine_loads_what_the_first_wrote() {
    let shared = shared();
    let prompt = testing::tokens(200, 5);
    let expected = reference(&prompt, 12);
    let first = engine(Some(&shared), |_| {});
    assert_eq!(run(&first, &prompt, 12).tokens, expected);
    assert!(!shared.advertised().is_empty(), "the router can learn of it");
    first.shutdown();
    assert_eq!(shared.len(), 13, "211 tokens were computed");

    let second = engine(Some(&shared), |_| {});
    let warm = run(&second, &prompt, 12);
    assert_eq!(warm.tokens, expected);
    assert_eq!(warm.usage.loaded, LoadedTokens { pinned: 192, ..LoadedTokens::default() });
    assert_eq!(asked(&second), [(Asked::Hit(Tier::Pinned), 12)]);
    second.shutdown();

    shared.stop();
    shared.start();
    let third = engine(Some(&shared), |_| {});
    let restarted = run(&third, &prompt, 12);
    assert_eq!(restarted.tokens, expected);
    assert_eq!(restarted.usage.loaded, LoadedTokens { nvme: 192, ..LoadedTokens::default() });
    third.shutdown();
}

#[test]
fn a_longer_prompt_loads_the_common_part() {
    let shared = shared();
    let (document, question) = (testing::tokens(160, 6), testing::tokens(45, 7));
    let first = engine(Some(&shared), |_| {});
    run(&first, &document, 2);
    first.shutdown();
    let prompt: Vec<u32> = document.into_iter().chain(question).collect();
    let second = engine(Some(&shared), |_| {});
    let output = run(&second, &prompt, 5);
    assert_eq!((output.usage.loaded.pinned, output.usage.computed_tokens), (160, 45));
    assert_eq!(output.tokens, reference(&prompt, 5));
    assert_eq!(asked(&second), [(Asked::Hit(Tier::Pinned), 10), (Asked::Miss(Miss::Absent), 2)]);
    second.shutdown();
}

#[test]
fn a_broken_block_is_computed_again() {
    let shared = shared();
    let prompt = testing::tokens(120, 8);
    let first = engine(Some(&shared), |_| {});
    let expected = run(&first, &prompt, 6).tokens;
    let identity = first.identity().clone();
    first.shutdown();
    let keys = hearth_connector::proto::key::KeyChain::new(&secret(), &identity).keys(b"", &prompt);
    assert!(shared.corrupt(&keys[3]));
    let second = engine(Some(&shared), |_| {});
    let output = run(&second, &prompt, 6);
    assert_eq!(output.tokens, expected);
    assert_eq!(output.usage.loaded.pinned, 48);
    assert_eq!(asked(&second), [(Asked::Hit(Tier::Pinned), 3), (Asked::Miss(Miss::Corrupt), 4)]);
    second.shutdown();
}

#[test]
fn an_absent_or_silent_store_costs_computing_only() {
    let shared = shared();
    let prompt = testing::tokens(90, 9);
    let expected = reference(&prompt, 6);
    shared.stop();
    let down = engine(Some(&shared), |_| {});
    let output = run(&down, &prompt, 6);
    assert_eq!((output.tokens, output.usage.computed_tokens), (expected.clone(), 90));
    assert_eq!(asked(&down), [(Asked::Miss(Miss::StoreDown), 5)]);
    down.shutdown();

    shared.start();
    shared.stall(true);
    let silent = engine(Some(&shared), |config| {
        config.load_deadline = Duration::from_millis(40);
        config.write_deadline = Duration::from_millis(40);
    });
    let output = run(&silent, &prompt, 6);
    assert_eq!((output.tokens, output.usage.computed_tokens), (expected, 90));
    assert_eq!(asked(&silent), [(Asked::Miss(Miss::Deadline), 5)]);
    silent.shutdown();
}

#[test]
fn others_go_on_while_one_waits_for_the_store() {
    let shared = shared();
    shared.stall(true);
    let engine = engine(Some(&shared), |config| {
        config.load_deadline = Duration::from_secs(600);
        config.write_deadline = Duration::from_millis(1);
    });
    let mut stuck = submit(&engine, &testing::tokens(90, 10), 4);
    // Too short to have anything to load.
    let short = run(&engine, &testing::tokens(12, 11), 4);
    assert_eq!(short.tokens.len(), 4);
    shared.stall(false);
    assert!(matches!(stuck.blocking_next(), Some(GenEvent::Prompt { .. })));
    engine.shutdown();
}

#[test]
fn company_changes_no_token() {
    let prompts: Vec<Vec<u32>> =
        (0..6).map(|seed| testing::tokens(20 + 37 * seed as usize, 20 + seed)).collect();
    let expected: Vec<Vec<u32>> = prompts.iter().map(|prompt| reference(prompt, 15)).collect();
    for step_tokens_max in [64, 256] {
        let engine = engine(Some(&shared()), |config| {
            (config.step_tokens_max, config.running_max) = (step_tokens_max, 4);
        });
        let streams: Vec<GenStream> = prompts.iter().map(|prompt| submit(&engine, prompt, 15)).collect();
        for (stream, expected) in streams.into_iter().zip(&expected) {
            assert_eq!(&collect(stream).tokens, expected);
        }
        engine.shutdown();
    }
}

#[test]
fn equal_prompts_at_once_are_computed_once() {
    let prompt = testing::tokens(300, 30);
    let engine = engine(None, |config| config.step_tokens_max = 64);
    let streams: Vec<GenStream> = (0..3).map(|_| submit(&engine, &prompt, 5)).collect();
    let outputs: Vec<Output> = streams.into_iter().map(collect).collect();
    assert!(outputs.iter().all(|output| output.tokens == outputs[0].tokens));
    let computed: usize = outputs.iter().map(|output| output.usage.computed_tokens).sum();
    assert!(computed < 450, "{computed} tokens computed for three prompts of 300");
    engine.shutdown();
}

#[test]
fn too_few_pages_preempt_and_change_no_token() {
    let prompts: Vec<Vec<u32>> = (0..4).map(|seed| testing::tokens(30, 40 + seed)).collect();
    let expected: Vec<Vec<u32>> = prompts.iter().map(|prompt| reference(prompt, 60)).collect();
    let page_bytes = crate::kv::pages::PageShape::new(testing::model().config(), PAGE).bytes() as u64;
    // One request needs 6 pages at its longest; four together would need 24.
    let engine = engine(Some(&shared()), |config| config.kv_bytes = 9 * page_bytes);
    let streams: Vec<GenStream> = prompts.iter().map(|prompt| submit(&engine, prompt, 60)).collect();
    for (stream, expected) in streams.into_iter().zip(&expected) {
        let output = collect(stream);
        assert_eq!(&output.tokens, expected);
        assert_eq!(output.usage.completion_tokens, 60);
    }
    let total: u64 = asked(&engine).iter().map(|(_, count)| count).sum();
    assert_eq!(total, 4, "each block of each prompt is counted once, however often it is computed");
    engine.shutdown();
}

#[test]
fn leaving_frees_pages_and_places() {
    let page_bytes = crate::kv::pages::PageShape::new(testing::model().config(), PAGE).bytes() as u64;
    let engine = engine(None, |config| {
        (config.kv_bytes, config.step_tokens_max) = (60 * page_bytes, 48);
    });
    for seed in 0..5 {
        // Leaves while the prompt is computed, most likely.
        drop(submit(&engine, &testing::tokens(900, 50 + seed), 50));
    }
    // Needs every page there is.
    let whole = run(&engine, &testing::tokens(940, 60), 20);
    assert_eq!(whole.tokens.len(), 20);
    let mut stream = submit(&engine, &testing::tokens(40, 61), 900);
    assert!(matches!(stream.blocking_next(), Some(GenEvent::Prompt { .. })));
    drop(stream);
    while engine.handle().requests_in_flight() > 0 {
        std::thread::yield_now();
    }
    engine.shutdown();
}

#[test]
fn pages_given_up_are_withdrawn() {
    let shared = shared();
    let page_bytes = crate::kv::pages::PageShape::new(testing::model().config(), PAGE).bytes() as u64;
    let engine = engine(Some(&shared), |config| config.kv_bytes = 20 * page_bytes);
    for seed in 0..6 {
        run(&engine, &testing::tokens(200, 70 + seed), 2);
    }
    let advertised = shared.advertised().len();
    assert!((12..=20).contains(&advertised), "{advertised} blocks advertised by an engine of 20 pages");
    engine.shutdown();
}

#[test]
fn a_stop_token_ends_a_generation_and_is_not_told() {
    let prompt = testing::tokens(40, 80);
    let expected = reference(&prompt, 8);
    let stop = expected[4];
    let cut = expected.iter().position(|&token| token == stop).expect("it is there");
    let engine = engine(None, |_| {});
    let mut request = request(&engine, &prompt, 8);
    request.stop_tokens = vec![4095, stop];
    let output = collect(engine.handle().submit(request).expect("is taken"));
    assert_eq!((output.tokens.as_slice(), output.reason), (&expected[..cut], FinishReason::Stop));
    assert_eq!(output.usage.completion_tokens, cut + 1);
    engine.shutdown();
}

#[test]
fn salts_share_nothing_and_seeds_repeat() {
    let prompt = testing::tokens(70, 81);
    let engine = engine(None, |_| {});
    let sample = |salt: Option<&str>, seed| {
        let mut request = request(&engine, &prompt, 10);
        request.salt = salt.map(str::to_owned);
        request.sampling = Sampling { temperature: 1.5, seed: Some(seed), ..Sampling::greedy() };
        collect(engine.handle().submit(request).expect("is taken"))
    };
    let first = sample(None, 1);
    let salted = sample(Some("alice"), 1);
    assert_eq!((first.usage.loaded.engine, salted.usage.loaded.engine), (0, 0));
    assert_eq!(first.tokens, salted.tokens);
    let other = sample(None, 2);
    assert_eq!(other.usage.loaded.engine, 64);
    assert_ne!(first.tokens, other.tokens);
    engine.shutdown();
}

#[test]
fn shutting_down_ends_what_runs() {
    let engine = engine(None, |_| {});
    let mut stream = submit(&engine, &testing::tokens(40, 82), 900);
    assert!(matches!(stream.blocking_next(), Some(GenEvent::Prompt { .. })));
    let handle = engine.handle().clone();
    let late = request(&engine, &[1], 1);
    engine.shutdown();
    let last = std::iter::from_fn(|| stream.blocking_next()).last();
    assert!(matches!(last, Some(GenEvent::Finished { reason: FinishReason::Cancelled, .. })), "{last:?}");
    assert!(matches!(handle.submit(late), Err(EngineError::ShuttingDown)));
    assert_eq!(handle.requests_in_flight(), 0);
}
