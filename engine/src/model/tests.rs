//! The forward pass against a naive one, and its promise: the bits of a token depend on the tokens before it alone.

mod naive;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::kv::pages::PageShape;
use crate::testing;

const PAGE_TOKENS: usize = 16;

/// A sequence with pages of its own.
struct Sequence {
    tokens: Vec<u32>,
    pages: Vec<PageId>,
}

/// Sequences and the memory of their pages, the pages of different sequences interleaved.
fn sequences(model: &Model, tokens: Vec<Vec<u32>>) -> (Vec<Sequence>, Pages) {
    let shape = PageShape::new(model.config(), PAGE_TOKENS);
    let stride = tokens.len() as u32;
    let pages_each = tokens.iter().map(|t| t.len().div_ceil(PAGE_TOKENS)).max().unwrap_or(0);
    let pages = Pages::new(shape, pages_each * tokens.len());
    let sequences = tokens.into_iter().zip(0u32..).map(|(tokens, index)| {
        let pages = (0..pages_each as u32).map(|page| PageId(page * stride + index)).collect();
        Sequence { tokens, pages }
    });
    (sequences.collect(), pages)
}

/// Computes `tokens[from..]` of one sequence in chunks, and returns the last logits.
fn prefill(model: &Model, sequence: &Sequence, pages: &mut Pages, from: usize, chunk: usize) -> Vec<f32> {
    let mut first = from;
    let mut logits = None;
    while first < sequence.tokens.len() {
        let end = (first + chunk).min(sequence.tokens.len());
        let tokens = &sequence.tokens[first..end];
        let segment = Segment { tokens, first, pages: &sequence.pages, logits: end == sequence.tokens.len() };
        logits = model.forward(&[segment], pages).expect("computes").remove(0);
        first = end;
    }
    logits.expect("the last chunk gives logits")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn payloads(sequence: &Sequence, pages: &Pages) -> Vec<Vec<u8>> {
    sequence.pages.iter().map(|&page| pages.payload(page).to_vec()).collect()
}

#[test]
fn agrees_with_a_naive_forward_pass() {
    let model = testing::model();
    let (sequences, mut pages) = sequences(&model, vec![testing::tokens(45, 1)]);
    let logits = prefill(&model, &sequences[0], &mut pages, 0, 45);
    let checkpoint = Checkpoint::open(&testing::checkpoint_dir()).expect("opens");
    let naive =
        naive::logits(&checkpoint.config, checkpoint.read_weights().expect("reads"), &sequences[0].tokens);
    assert_eq!(logits.len(), naive.len());
    for (ours, exact) in logits.iter().zip(naive) {
        assert!((f64::from(*ours) - exact).abs() < 1e-3, "{ours} is not {exact}");
    }
}

#[test]
fn agrees_with_a_naive_forward_pass_on_every_option() {
    let config = ModelConfig {
        hidden: 48,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        head_dim: 32,
        ffn: 40,
        vocab: 30,
        context_tokens_max: 256,
        rms_eps: 1e-6,
        rope_theta: 500.0,
        rope_scaling: Some(crate::checkpoint::Llama3Rope {
            factor: 4.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 64.0,
        }),
        attention_bias: true,
        mlp_bias: true,
        tie_embeddings: true,
    };
    let weights = || naive::random_weights(&config);
    let model = Model::new(&config, weights()).expect("a model");
    let tokens: Vec<u32> = testing::tokens(70, 4).iter().map(|token| token % 30).collect();
    let (sequences, mut pages) = sequences(&model, vec![tokens]);
    let logits = prefill(&model, &sequences[0], &mut pages, 0, 32);
    for (ours, exact) in logits.iter().zip(naive::logits(&config, weights(), &sequences[0].tokens)) {
        assert!((f64::from(*ours) - exact).abs() < 1e-3, "{ours} is not {exact}");
    }
}

#[test]
fn chunks_do_not_change_a_bit() {
    let model = testing::model();
    let tokens = testing::tokens(333, 2);
    let (whole, mut pages) = sequences(&model, vec![tokens.clone()]);
    let logits = prefill(&model, &whole[0], &mut pages, 0, tokens.len());
    let payloads_whole = payloads(&whole[0], &pages);
    for chunk in [1, 7, 16, 48, 64, 256] {
        let (chunked, mut pages) = sequences(&model, vec![tokens.clone()]);
        let again = prefill(&model, &chunked[0], &mut pages, 0, chunk);
        assert_eq!(bits(&logits), bits(&again), "chunks of {chunk}");
        assert_eq!(payloads_whole, payloads(&chunked[0], &pages), "chunks of {chunk}");
    }
}

#[test]
fn loaded_pages_do_not_change_a_bit() {
    let model = testing::model();
    let tokens = testing::tokens(200, 3);
    let (cold, mut cold_pages) = sequences(&model, vec![tokens.clone()]);
    let logits = prefill(&model, &cold[0], &mut cold_pages, 0, 64);
    for blocks in [1, 5, 12] {
        let (warm, mut pages) = sequences(&model, vec![tokens.clone()]);
        for &page in &warm[0].pages[..blocks] {
            let mut buffer = pages.take_out(page);
            buffer.bytes_mut().copy_from_slice(cold_pages.payload(page));
            pages.put_back(page, buffer);
        }
        let again = prefill(&model, &warm[0], &mut pages, blocks * PAGE_TOKENS, 48);
        assert_eq!(bits(&logits), bits(&again), "{blocks} blocks loaded");
        assert_eq!(payloads(&cold[0], &cold_pages), payloads(&warm[0], &pages), "{blocks} blocks loaded");
    }
}

#[test]
fn company_in_the_batch_does_not_change_a_bit() {
    let model = testing::model();
    let prompts: Vec<Vec<u32>> =
        (0..4).map(|seed| testing::tokens(90 + 17 * seed as usize, 10 + seed)).collect();
    let alone: Vec<(Vec<u32>, Vec<Vec<u8>>)> = prompts
        .iter()
        .map(|tokens| {
            let (sequences, mut pages) = sequences(&model, vec![tokens.clone()]);
            let logits = prefill(&model, &sequences[0], &mut pages, 0, 32);
            (bits(&logits), payloads(&sequences[0], &pages))
        })
        .collect();
    for count in 2..=4 {
        let (sequences, mut pages) = sequences(&model, prompts[..count].to_vec());
        // All but the last token of each as one batch, then the last ones as another, like decoding.
        let segment =
            |s: &'_ Sequence, from: usize, to: usize| (from, s.tokens[from..to].to_vec(), s.pages.clone());
        let mut last = vec![];
        for decode in [false, true] {
            let parts: Vec<_> = sequences
                .iter()
                .map(|s| {
                    let cut = s.tokens.len() - 1;
                    if decode { segment(s, cut, cut + 1) } else { segment(s, 0, cut) }
                })
                .collect();
            let segments: Vec<Segment<'_>> = parts
                .iter()
                .map(|(first, tokens, pages)| Segment { tokens, first: *first, pages, logits: decode })
                .collect();
            last = model.forward(&segments, &mut pages).expect("computes");
        }
        for (index, sequence) in sequences.iter().enumerate() {
            let logits = last[index].as_ref().expect("asked for");
            assert_eq!(alone[index].0, bits(logits), "sequence {index} of {count}");
            let own = sequence.tokens.len().div_ceil(PAGE_TOKENS);
            assert_eq!(alone[index].1[..], payloads(sequence, &pages)[..own], "sequence {index} of {count}");
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let model = testing::model();
    let tokens = testing::tokens(150, 5);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            let (sequences, mut pages) = sequences(&model, vec![tokens.clone()]);
            bits(&prefill(&model, &sequences[0], &mut pages, 0, 64))
        })
    };
    assert_eq!(run(1), run(4));
}

#[test]
fn stale_bytes_behind_a_sequence_do_not_matter() {
    let model = testing::model();
    let tokens = testing::tokens(20, 6);
    let (fresh, mut pages) = sequences(&model, vec![tokens.clone()]);
    let logits = prefill(&model, &fresh[0], &mut pages, 0, 20);
    let (stale, mut pages) = sequences(&model, vec![tokens]);
    for &page in &stale[0].pages {
        let mut buffer = pages.take_out(page);
        buffer.bytes_mut().chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&f32::NAN.to_le_bytes()));
        pages.put_back(page, buffer);
    }
    assert_eq!(bits(&logits), bits(&prefill(&model, &stale[0], &mut pages, 0, 20)));
}

#[test]
fn greedy_text_depends_on_the_prompt_and_does_not_hang_on_rounding() {
    let model = testing::model();
    let mut outputs = std::collections::HashSet::new();
    let (mut small_gaps, mut steps) = (0, 0);
    for seed in 0..6 {
        let (mut sequences, mut pages) = sequences(&model, vec![testing::tokens(60 + 24, 100 + seed)]);
        let sequence = &mut sequences[0];
        sequence.tokens.truncate(60);
        let mut generated = vec![];
        let mut from = 0;
        for _ in 0..24 {
            let logits = prefill(&model, sequence, &mut pages, from, 64);
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            small_gaps += usize::from(logits[order[0]] - logits[order[1]] < 1e-3);
            steps += 1;
            from = sequence.tokens.len();
            sequence.tokens.push(order[0] as u32);
            generated.push(order[0] as u32);
        }
        assert!(!generated.contains(&1), "the end token is never the most likely one");
        outputs.insert(generated);
    }
    assert_eq!(outputs.len(), 6, "different prompts give different texts");
    assert!(small_gaps * 20 <= steps, "{small_gaps} of {steps} choices were close");
}
