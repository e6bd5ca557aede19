//! The pool against a model that knows only who holds which page and which runs were published.

use proptest::prelude::*;

use super::*;

fn key(path: &[u8]) -> BlockKey {
    BlockKey(*blake3::hash(path).as_bytes())
}

/// Requests hold runs: each a path of blocks, with the page of each.
#[derive(Debug, Default)]
struct Run {
    path: Vec<u8>,
    pages: Vec<PageId>,
}

#[derive(Debug, Clone)]
enum Step {
    /// A request comes for these blocks; what is found is held, the rest taken and published.
    Start(Vec<u8>),
    Extend(usize, u8),
    End(usize),
    /// A write-back holds one page of a run, and perhaps outlives it.
    Lend(usize, usize),
    Return(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => prop::collection::vec(0u8..3, 1..6).prop_map(Step::Start),
        2 => (any::<prop::sample::Index>(), 0u8..3).prop_map(|(i, b)| Step::Extend(i.index(64), b)),
        3 => any::<prop::sample::Index>().prop_map(|i| Step::End(i.index(64))),
        2 => (0usize..64, 0usize..64).prop_map(|(run, depth)| Step::Lend(run, depth)),
        1 => (0usize..64).prop_map(Step::Return),
    ];
    prop::collection::vec(step, 1..80)
}

fn extend(pool: &mut Pool, run: &mut Run, block: u8) -> bool {
    let mut path = run.path.clone();
    path.push(block);
    let page = match pool.find(&key(&path)) {
        Some(page) => {
            pool.hold(page);
            page
        }
        None => match pool.take() {
            Some(page) => pool.publish(page, key(&path), run.pages.last().copied()),
            None => return false,
        },
    };
    run.path = path;
    run.pages.push(page);
    true
}

fn check(pool: &Pool, runs: &[Run], lent: &[(Vec<u8>, PageId)], count: usize) {
    let mut holders: HashMap<PageId, (u32, &[u8])> = HashMap::new();
    for (path, page) in lent {
        for depth in 1..=path.len() {
            let before = pool.find(&key(&path[..depth])).expect("what is before a held page is there");
            holders.entry(before).or_insert((0, &path[..depth])).0 += u32::from(before == *page);
        }
    }
    for run in runs {
        for (depth, page) in run.pages.iter().enumerate() {
            let path = &run.path[..=depth];
            let entry = holders.entry(*page).or_insert((0, path));
            assert_eq!(entry.1, path, "a page holds one block for all its holders");
            entry.0 += 1;
        }
    }
    let counts = pool.counts();
    assert_eq!(counts.held, holders.len());
    assert_eq!(counts.free + counts.idle + counts.held, count);
    assert_eq!(pool.published.len(), counts.idle + counts.held, "everything not free is published here");
    for (page, (held, path)) in &holders {
        assert_eq!(pool.slots[page.0 as usize].holders, *held);
        assert_eq!(pool.find(&key(path)), Some(*page));
    }
    for (key, page) in &pool.published {
        let block = pool.slots[page.0 as usize].block.as_ref().expect("published");
        assert_eq!(block.key, *key);
        if let Some(parent) = block.parent {
            let parent =
                pool.slots[parent.0 as usize].block.as_ref().expect("a parent outlives its children");
            assert_eq!(pool.published.get(&parent.key).copied(), block.parent);
        }
    }
}

proptest! {
    #[test]
    fn no_page_has_two_uses(count in 1usize..12, steps in steps()) {
        let mut pool = Pool::new(count);
        let mut runs: Vec<Run> = vec![];
        let mut lent: Vec<(Vec<u8>, PageId)> = vec![];
        for step in steps {
            match step {
                Step::Start(path) => {
                    let mut run = Run::default();
                    let whole = path.iter().all(|&block| extend(&mut pool, &mut run, block));
                    prop_assert!(whole || pool.available() == 0);
                    runs.push(run);
                }
                Step::Extend(index, block) if !runs.is_empty() => {
                    let index = index % runs.len();
                    let mut run = std::mem::take(&mut runs[index]);
                    extend(&mut pool, &mut run, block);
                    runs[index] = run;
                }
                Step::End(index) if !runs.is_empty() => {
                    let run = runs.swap_remove(index % runs.len());
                    run.pages.iter().for_each(|&page| pool.release(page));
                }
                Step::Lend(run, depth) if runs.iter().any(|run| !run.pages.is_empty()) => {
                    let runs: Vec<&Run> = runs.iter().filter(|run| !run.pages.is_empty()).collect();
                    let run = runs[run % runs.len()];
                    let depth = depth % run.pages.len();
                    pool.hold(run.pages[depth]);
                    lent.push((run.path[..=depth].to_vec(), run.pages[depth]));
                }
                Step::Return(index) if !lent.is_empty() => {
                    let (_, page) = lent.swap_remove(index % lent.len());
                    pool.release(page);
                }
                Step::Extend(..) | Step::End(_) | Step::Lend(..) | Step::Return(_) => {}
            }
            for key in pool.drain_given_up() {
                prop_assert!(pool.find(&key).is_none());
            }
            check(&pool, &runs, &lent, count);
        }
        lent.iter().for_each(|&(_, page)| pool.release(page));
        for run in runs.drain(..) {
            run.pages.iter().for_each(|&page| pool.release(page));
        }
        prop_assert_eq!(pool.available(), count);
        let taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        prop_assert_eq!(taken.len(), count, "every idle page can be given up");
    }
}

#[test]
fn the_end_of_the_oldest_run_goes_first() {
    let mut pool = Pool::new(4);
    let mut old = Run::default();
    let mut new = Run::default();
    assert!(extend(&mut pool, &mut old, 1) && extend(&mut pool, &mut old, 2));
    assert!(extend(&mut pool, &mut new, 5) && extend(&mut pool, &mut new, 6));
    old.pages.iter().for_each(|&page| pool.release(page));
    new.pages.iter().for_each(|&page| pool.release(page));
    let order: Vec<_> = (0..4).filter_map(|_| pool.take().map(|_| pool.drain_given_up()[0])).collect();
    assert_eq!(order, [key(&[1, 2]), key(&[1]), key(&[5, 6]), key(&[5])]);
    assert_eq!(pool.take(), None);
}

#[test]
fn a_block_computed_twice_is_kept_once() {
    let mut pool = Pool::new(3);
    let first = pool.take().expect("free");
    let second = pool.take().expect("free");
    assert_eq!(pool.publish(first, key(&[1]), None), first);
    assert_eq!(pool.publish(second, key(&[1]), None), first);
    assert_eq!(pool.counts(), PoolCounts { free: 2, idle: 0, held: 1 });
    pool.release(first);
    pool.release(first);
    assert_eq!(pool.counts(), PoolCounts { free: 2, idle: 1, held: 0 });
}
