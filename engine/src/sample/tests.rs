//! The sampler against the textbook definitions, over random logits and settings.

use proptest::prelude::*;

use super::*;

fn sampling(temperature: f32) -> Sampling {
    Sampling { temperature, ..Sampling::greedy() }
}

fn picks(sampling: &Sampling, logits: &[f32], n: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(sampling.clone(), 7);
    (0..n).map(|_| sampler.pick(&mut logits.to_vec()).expect("finite logits")).collect()
}

/// Tokens from the most likely to the least, with their probability.
fn ranked(logits: &[f32], temperature: f32) -> Vec<(u32, f64)> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> =
        logits.iter().map(|&l| ((f64::from(l) - f64::from(top)) / f64::from(temperature)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut ranked: Vec<(u32, f64)> = (0..).zip(weights.iter().map(|w| w / total)).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked
}

fn logits() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-20.0f32..20.0, 1..200)
}

proptest! {
    #[test]
    fn greedy_is_the_first_highest(logits in logits()) {
        let best = ranked(&logits, 1.0)[0].0;
        prop_assert_eq!(picks(&sampling(0.0), &logits, 3), vec![best; 3]);
    }

    #[test]
    fn top_k_keeps_the_k_most_likely(logits in logits(), k in 1usize..50, temperature in 0.1f32..2.0) {
        let settings = Sampling { top_k: Some(k), ..sampling(temperature) };
        let kept: Vec<u32> = ranked(&logits, temperature).iter().take(k).map(|r| r.0).collect();
        for token in picks(&settings, &logits, 50) {
            prop_assert!(kept.contains(&token));
        }
    }

    #[test]
    fn top_p_keeps_the_smallest_set(logits in logits(), top_p in 0.01f32..0.99, temperature in 0.1f32..2.0) {
        let settings = Sampling { top_p, ..sampling(temperature) };
        let mut sum = 0.0;
        let mut kept = vec![];
        for (token, p) in ranked(&logits, temperature) {
            kept.push(token);
            sum += p;
            // The sampler adds in another order: allow it the token at the very edge.
            if sum >= f64::from(top_p) + 1e-9 {
                break;
            }
        }
        for token in picks(&settings, &logits, 50) {
            prop_assert!(kept.contains(&token));
        }
    }

    #[test]
    fn min_p_drops_the_unlikely(logits in logits(), min_p in 0.01f32..1.0, temperature in 0.1f32..2.0) {
        let ranked = ranked(&logits, temperature);
        let floor = f64::from(min_p) * ranked[0].1 * (1.0 - 1e-9);
        for token in picks(&Sampling { min_p, ..sampling(temperature) }, &logits, 50) {
            prop_assert!(ranked.iter().any(|&(t, p)| t == token && p >= floor));
        }
    }

    #[test]
    fn equal_seeds_give_equal_tokens(logits in logits(), seed: u64, other in 0u64..100) {
        let settings = Sampling { seed: Some(seed), top_p: 0.9, ..sampling(1.0) };
        let mut first = Sampler::new(settings.clone(), 0);
        let mut second = Sampler::new(settings, other);
        for _ in 0..20 {
            prop_assert_eq!(first.pick(&mut logits.clone()), second.pick(&mut logits.clone()));
        }
    }

    #[test]
    fn never_fails_on_finite_logits(
        logits in prop::collection::vec(prop::num::f32::NORMAL, 1..50),
        temperature in 0.0f32..2.0,
        top_p in 0.0001f32..1.0,
        penalty in -2.0f32..2.0,
    ) {
        let settings = Sampling { top_p, presence_penalty: penalty, frequency_penalty: penalty, ..sampling(temperature) };
        let mut sampler = Sampler::new(settings, 1);
        for _ in 0..10 {
            let mut logits = logits.clone();
            // A penalty may push the extremes of f32 over the edge; that is the error's case.
            if let Ok(token) = sampler.pick(&mut logits) {
                prop_assert!((token as usize) < logits.len());
            }
        }
    }
}

#[test]
fn draws_follow_the_probabilities() {
    const DRAWS: usize = 20_000;
    let logits = [0.0, 1.0, 2.0, -1.0];
    let picked = picks(&sampling(0.8), &logits, DRAWS);
    for (token, p) in ranked(&logits, 0.8) {
        let share = picked.iter().filter(|&&t| t == token).count() as f64 / DRAWS as f64;
        assert!((share - p).abs() < 0.01, "token {token}: drawn {share}, expected {p}");
    }
}

#[test]
fn a_draw_depends_on_its_number_alone() {
    let flat = [0.0f32; 64];
    let settings = sampling(1.0);
    let plain = picks(&settings, &flat, 10);
    let mut sampler = Sampler::new(settings, 7);
    for (n, &expected) in plain.iter().enumerate() {
        // Other logits before do not shift the draws after them.
        let token = if n == 3 { sampler.pick(&mut [9.0, 0.0]) } else { sampler.pick(&mut flat.to_vec()) };
        if n != 3 {
            assert_eq!(token, Ok(expected));
        }
    }
    assert_ne!(picks(&sampling(1.0), &flat, 10), {
        let mut other = Sampler::new(sampling(1.0), 8);
        (0..10).map(|_| other.pick(&mut flat.to_vec()).expect("finite")).collect::<Vec<_>>()
    });
}

#[test]
fn penalties_count_what_was_generated() {
    let logits = [1.0, 0.9, 0.0];
    let presence = Sampling { presence_penalty: 0.5, ..sampling(0.0) };
    assert_eq!(picks(&presence, &logits, 4), [0, 1, 0, 0]);
    let frequency = Sampling { frequency_penalty: 0.6, ..sampling(0.0) };
    assert_eq!(picks(&frequency, &logits, 6), [0, 1, 0, 1, 2, 0]);
    let reward = Sampling { presence_penalty: -2.0, ..sampling(0.0) };
    assert_eq!(picks(&reward, &logits, 2), [0, 0]);
}

#[test]
fn tokens_ruled_out_are_never_drawn() {
    let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
    assert_eq!(picks(&sampling(2.0), &logits, 20), [1; 20]);
}

#[test]
fn broken_logits_are_an_error() {
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(sampling(temperature), 0);
        assert_eq!(sampler.pick(&mut [0.0, f32::NAN]), Err(SampleError::Broken { token: 1 }));
        assert_eq!(sampler.pick(&mut [f32::INFINITY]), Err(SampleError::Broken { token: 0 }));
        assert_eq!(sampler.pick(&mut [f32::NEG_INFINITY]), Err(SampleError::NothingLeft));
        assert_eq!(sampler.pick(&mut []), Err(SampleError::NothingLeft));
    }
}
