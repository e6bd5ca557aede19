//! Every kernel copies the same bytes and gives the same digest as `memcpy` and `crc32fast`, at any
//! length and alignment; and a digest is of what landed even while the source changes.

use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::region::Region;

fn kernels() -> Vec<(&'static str, Kernel)> {
    let mut kernels: Vec<(&'static str, Kernel)> = vec![("portable", staged_step)];
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx2") {
            kernels.push(("avx2", x86::stream_avx2));
        }
        if std::is_x86_feature_detected!("avx512f") {
            kernels.push(("avx512", x86::stream_avx512));
        }
    }
    kernels
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len);
    for _ in 0..len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.push((state >> 56) as u8);
    }
    bytes
}

proptest! {
    #[test]
    fn kernels_agree(
        len in prop_oneof![0_usize..200, 900_usize..1200, 0_usize..20_000],
        src_at in 0_usize..70,
        dst_at in 0_usize..70,
        seed: u64,
    ) {
        let src = pattern(src_at + len, seed);
        let expected = crc32fast::hash(&src[src_at..]);
        for (name, kernel) in kernels() {
            let mut dst = vec![0xA5_u8; dst_at + len + 64];
            // SAFETY: both vectors have room for `len` bytes from their offsets.
            let digest = unsafe {
                through_stage(dst.as_mut_ptr().add(dst_at), src.as_ptr().add(src_at), len, kernel)
            };
            prop_assert_eq!(digest, expected, "digest of {}", name);
            prop_assert_eq!(&dst[dst_at..dst_at + len], &src[src_at..], "bytes of {}", name);
            prop_assert!(dst[..dst_at].iter().all(|&b| b == 0xA5), "{} wrote before", name);
            prop_assert!(dst[dst_at + len..].iter().all(|&b| b == 0xA5), "{} wrote behind", name);
        }
    }

    #[test]
    fn directions_agree(len in 1_usize..20_000, at in 0_usize..70, seed: u64) {
        let bytes = pattern(len, seed);
        let expected = crc32fast::hash(&bytes);
        let src = Region::heap(at + len).expect("memory").slice(at..at + len).expect("inside");
        let dst = Region::heap(at + len).expect("memory").slice(0..len).expect("inside");
        for stores in [Stores::Cached, Stores::Streaming] {
            prop_assert_eq!(bytes_to_region(&src, &bytes, stores), expected);
            prop_assert_eq!(region_digest(&src), expected);
            prop_assert_eq!(region_to_region(&dst, &src, stores), expected);
            let mut out = vec![0; len];
            prop_assert_eq!(region_to_bytes(&mut out, &dst, stores), expected);
            prop_assert_eq!(&out, &bytes);
        }
    }
}

#[test]
fn digest_is_of_what_landed_while_the_source_changes() {
    const LEN: usize = 64 * 1024;
    let src = Region::shared("changing", LEN).expect("memory").whole();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut byte = 0_u8;
            while !stop.load(Ordering::Relaxed) {
                byte = byte.wrapping_add(1);
                src.fill(byte).expect("writable");
            }
        });
        let mut dst = vec![0; LEN];
        for round in 0..400 {
            let stores = if round % 2 == 0 { Stores::Cached } else { Stores::Streaming };
            let digest = region_to_bytes(&mut dst, &src, stores);
            assert_eq!(digest, crc32fast::hash(&dst), "{stores:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}
