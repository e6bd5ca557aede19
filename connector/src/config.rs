//! What a client says about itself when it opens the store.

use std::path::PathBuf;

use hearth_proto::identity::CacheIdentity;
use hearth_proto::tenant::{TenantName, TenantSecret};

use crate::metrics::Metrics;

/// What a client says about itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoreConfig {
    /// The node's unix socket. With none there is no store: every call is a [`Miss::Off`](crate::Miss::Off).
    pub socket: Option<PathBuf>,
    /// Whose blocks are read and written.
    pub tenant: TenantName,
    /// The tenant's secret. It is proven, never sent.
    pub secret: TenantSecret,
    /// Everything that changes the bytes of a block.
    pub identity: CacheIdentity,
    /// Who is asking, for the node's log and for the router: an engine's base URL, or any name.
    pub holder: String,
    /// Where the connector counts; a private one unless set.
    pub metrics: Metrics,
}

impl StoreConfig {
    /// A configuration with metrics of its own.
    pub fn new(
        socket: Option<PathBuf>,
        tenant: TenantName,
        secret: TenantSecret,
        identity: CacheIdentity,
        holder: impl Into<String>,
    ) -> Self {
        Self { socket, tenant, secret, identity, holder: holder.into(), metrics: Metrics::default() }
    }
}
