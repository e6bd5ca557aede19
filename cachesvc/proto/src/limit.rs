//! Bounds that both sides of a connection keep. Checked before memory is taken.

/// Bytes of one frame's body: a chain of a two-million-token prompt fits.
pub const FRAME_BYTES_MAX: usize = 8 << 20;
/// Blocks of one chain in one request.
pub const CHAIN_BLOCKS_MAX: usize = 1 << 17;
/// Bytes of any name in an identity, a holder name included.
pub const NAME_BYTES_MAX: usize = 512;
/// Attention groups of one identity.
pub const GROUPS_MAX: usize = 16;
/// Layers, KV heads, head dimension or block tokens of one identity, each.
pub const DIMENSION_MAX: u32 = 1 << 16;
/// Bytes of one block's payload.
pub const PAYLOAD_BYTES_MAX: u64 = 1 << 30;
/// Shared regions that one session may be given, so descriptors in one message.
pub const REGIONS_MAX: usize = 16;
/// Requests that one session may have in flight.
pub const INFLIGHT_REQUESTS_MAX: usize = 256;
/// Longest that a node works on one request, whatever its deadline says, in milliseconds.
pub const DEADLINE_MS_MAX: u32 = 60_000;
/// Blocks that one session may advertise as held by its engine.
pub const ADVERTISED_BLOCKS_MAX: usize = 1 << 20;
