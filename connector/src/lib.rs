//! What an inference engine calls: the client of the Hearth KV block store.
//!
//! Every call is blocking, takes a deadline and is back by then. A [`Miss`] is always a legal answer: an absent,
//! slow or dying store never raises into the engine, it makes it recompute. A hit is right: each block is checked
//! against its header and checksums after its bytes have landed, on every path, and that cannot be switched off.
//!
//! It is not an async library, it holds no KV pages of its own, and it makes no decision about what to load.
//!
//! The types to know:
//!
//! - [`Store`]: the handle. Opened at once, connects and reconnects in the background, cheap to clone.
//! - [`Lease`]: blocks that may be read. Dropping it releases them.
//! - [`Reservation`]: slots that may be written, then sealed. Dropping it gives them back.
//! - [`Miss`]: why a block is not served.
//! - [`fake::Shared`]: the same store in memory, for tests of engines.
//! - [`Metrics`]: the connector's own, and the counter of blocks asked that the engine increments.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use hearth_connector::{Durability, Store, StoreConfig, fake};
//! # use hearth_connector::proto::{identity::*, key::KeyChain, tenant::*};
//! # fn identity() -> CacheIdentity {
//! #     CacheIdentity { model: "m".into(), revision: "1".into(), tokenizer: "t".into(), compute_dtype: "f32".into(),
//! #         kv_dtype: "f32".into(), kv_scale: "none".into(), block_tokens: 16, rope: String::new(),
//! #         groups: vec![AttentionGroup { kind: "full".into(), layers: 2, kv_heads: 1, head_dim: 32 }],
//! #         adapter: String::new(), adapter_revision: String::new(), layout: LAYOUT_CANONICAL.into(), format: 1 }
//! # }
//! let secret = TenantSecret::from_bytes([7; 32]);
//! let tenant: TenantName = "default".parse()?;
//! let shared = fake::Shared::new(64 << 20);
//! let config = StoreConfig::new(None, tenant, secret.clone(), identity(), "http://127.0.0.1:8000");
//! let store = Store::fake(&shared, config);
//! let soon = || Instant::now() + Duration::from_secs(1);
//!
//! let tokens: Vec<u32> = (0..64).collect();
//! let chain = KeyChain::new(&secret, &identity()).keys(b"", &tokens);
//! let reservation = store.reserve(&chain, 0, soon());
//! let block = vec![1; reservation.payload_bytes()];
//! for &index in reservation.granted() {
//!     reservation.write(index, &block)?;
//! }
//! assert_eq!(reservation.seal(Durability::Memory, soon())?.blocks, chain.len());
//!
//! let lease = store.acquire(&chain, 0..chain.len(), soon()).lease.expect("just stored");
//! let mut page = vec![0; lease.payload_bytes()];
//! lease.read(0, &mut page)?;
//! assert_eq!(page, block);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod advertised;
mod backend;
mod client;
mod config;
#[doc(hidden)]
pub mod conformance;
mod error;
pub mod fake;
mod grant;
mod hello;
mod lease;
mod local;
mod metrics;
mod off;
mod reservation;
mod session;
mod store;

pub use config::StoreConfig;
pub use error::{Miss, Refusal, SealError, State, WriteError};
pub use hearth_proto as proto;
pub use hearth_transfer::RegionSlice;
pub use lease::Lease;
pub use local::VerifiedView;
pub use metrics::{Asked, Metrics};
pub use reservation::{Durability, RESERVATION_VALID, Reservation, Sealed};
pub use store::{Acquired, GRANTS_HELD_MAX, Matched, Store, Tier};
