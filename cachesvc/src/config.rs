//! Settings of a node, checked once.

use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

use crate::io::IoMode;
use crate::slots::SlotsConfig;

/// Shards that a node can have: each has a region per tenant, and one message carries the descriptors of all.
pub const SHARDS_MAX: u32 = 16;

/// Share of a pinned arena that one segment takes, at most.
const SEGMENT_SHARE: u64 = 8;
const PINNED_SEGMENT_BYTES_MAX: u64 = 64 << 20;
const PINNED_SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// What a node is made of.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Name in logs and in the event feed.
    pub name: String,
    /// Where it keeps everything that outlives it.
    pub data_dir: PathBuf,
    /// Unix socket of the local protocol.
    pub socket: PathBuf,
    /// Address of the control plane.
    pub grpc: SocketAddr,
    /// Address of metrics and health.
    pub http: SocketAddr,
    /// Directory of the tenants' secrets.
    pub tenants: PathBuf,
    /// Bytes of the pinned tier, over all shards and tenants.
    pub pinned_bytes: u64,
    /// Bytes of the NVMe tier over all shards; none to have no such tier.
    pub nvme_bytes: u64,
    /// Bytes of one segment file.
    pub nvme_segment_bytes: u64,
    /// How the NVMe device is driven.
    pub nvme_io: IoMode,
    /// Shards of a store that is made new.
    pub shards: u32,
}

/// Settings that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The number of shards.
    #[error("--shards {0}: 1 to {SHARDS_MAX} shards are possible")]
    Shards(u32),
    /// The pinned tier is too small.
    #[error(
        "--pinned-bytes {bytes} is too little for {shards} shards and {tenants} tenants: at least {least} bytes are needed"
    )]
    Pinned {
        /// As configured.
        bytes: u64,
        /// Shards.
        shards: u64,
        /// Tenants.
        tenants: u64,
        /// The least possible.
        least: u64,
    },
    /// The NVMe tier is too small.
    #[error(
        "--nvme-bytes {bytes} is too little for {shards} shards with segments of {segment} bytes: use at least {least}, or 0 for no NVMe tier"
    )]
    Nvme {
        /// As configured.
        bytes: u64,
        /// Shards.
        shards: u32,
        /// Bytes of a segment.
        segment: u64,
        /// The least possible.
        least: u64,
    },
    /// A listener would be reachable from other hosts.
    #[error(
        "{flag} {address} is reachable from other hosts, which needs TLS, and there is none yet: use 127.0.0.1 or [::1]"
    )]
    NotLoopback {
        /// The flag.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
    },
}

impl NodeConfig {
    /// Checks what can be checked without touching the machine.
    ///
    /// # Errors
    /// Names the setting and what is possible.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=SHARDS_MAX).contains(&self.shards) {
            return Err(ConfigError::Shards(self.shards));
        }
        for (flag, address) in [("--grpc", self.grpc), ("--listen", self.http)] {
            if !address.ip().is_loopback() {
                return Err(ConfigError::NotLoopback { flag, address });
            }
        }
        Ok(())
    }

    /// One shard's share of the pinned tier for one tenant: equal parts, in whole segments.
    ///
    /// # Errors
    /// When a part is smaller than the smallest segment.
    pub fn pinned_share(&self, shards: u32, tenants: usize) -> Result<SlotsConfig, ConfigError> {
        let (shards, tenants) = (u64::from(shards), tenants as u64);
        let share = self.pinned_bytes / (shards * tenants);
        let segment = (share / SEGMENT_SHARE).clamp(PINNED_SEGMENT_BYTES_MIN, PINNED_SEGMENT_BYTES_MAX);
        let segment_bytes = segment - segment % 4096;
        let segments = share / segment_bytes;
        if segments == 0 {
            let least = shards * tenants * PINNED_SEGMENT_BYTES_MIN;
            return Err(ConfigError::Pinned { bytes: self.pinned_bytes, shards, tenants, least });
        }
        Ok(SlotsConfig {
            segment_bytes,
            segment_head_bytes: 0,
            segment_tail_bytes: 0,
            segments_max: u32::try_from(segments).unwrap_or(u32::MAX),
        })
    }

    /// One shard's share of the NVMe tier, if there is one.
    ///
    /// # Errors
    /// When it is smaller than a segment.
    pub fn nvme_share(&self, shards: u32) -> Result<Option<u64>, ConfigError> {
        let (bytes, segment) = (self.nvme_bytes, self.nvme_segment_bytes);
        if bytes == 0 {
            return Ok(None);
        }
        let share = bytes / u64::from(shards);
        if share < segment {
            return Err(ConfigError::Nvme { bytes, shards, segment, least: segment * u64::from(shards) });
        }
        Ok(Some(share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NodeConfig {
        NodeConfig {
            name: "n".into(),
            data_dir: "d".into(),
            socket: "s".into(),
            grpc: ([127, 0, 0, 1], 0).into(),
            http: ([127, 0, 0, 1], 0).into(),
            tenants: "t".into(),
            pinned_bytes: 1 << 30,
            nvme_bytes: 4 << 30,
            nvme_segment_bytes: 64 << 20,
            nvme_io: IoMode::Auto,
            shards: 2,
        }
    }

    #[test]
    fn shares_never_exceed_the_whole() {
        for (bytes, shards, tenants) in
            [(1 << 30, 2, 1), (100 << 20, 3, 7), (2 << 20, 2, 1), (1 << 40, 16, 1)]
        {
            let config = NodeConfig { pinned_bytes: bytes, ..config() };
            match config.pinned_share(shards, tenants) {
                Ok(share) => {
                    let all = share.segment_bytes
                        * u64::from(share.segments_max)
                        * u64::from(shards)
                        * tenants as u64;
                    assert!(
                        all <= bytes && all * 4 >= bytes * 3 || bytes < 64 << 20,
                        "{bytes} {shards} {tenants}"
                    );
                }
                Err(error) => assert!(matches!(error, ConfigError::Pinned { .. })),
            }
        }
    }

    #[test]
    fn impossible_settings_are_named() {
        assert_eq!(NodeConfig { shards: 0, ..config() }.validate(), Err(ConfigError::Shards(0)));
        let open = NodeConfig { grpc: ([0, 0, 0, 0], 1).into(), ..config() };
        assert!(matches!(open.validate(), Err(ConfigError::NotLoopback { flag: "--grpc", .. })));
        assert!(NodeConfig { pinned_bytes: 1, ..config() }.pinned_share(2, 1).is_err());
        assert!(NodeConfig { nvme_bytes: 1, ..config() }.nvme_share(2).is_err());
        assert_eq!(NodeConfig { nvme_bytes: 0, ..config() }.nvme_share(2), Ok(None));
    }
}
