//! Which identity the clients of a model use: all of them the same.
//!
//! Two engines that serve one model with different settings would never share a block, and nobody would be told. So the
//! first live session of a tenant, model and adapter decides, and others must be equal to it.

use std::collections::HashMap;

use hearth_proto::identity::{CacheIdentity, IdentityMismatch};

use crate::store::message::TenantIndex;

/// Identities of live sessions.
#[derive(Debug, Default)]
pub struct Registry {
    live: HashMap<Served, (CacheIdentity, usize)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Served {
    tenant: TenantIndex,
    model: String,
    adapter: String,
}

impl Served {
    fn new(tenant: TenantIndex, identity: &CacheIdentity) -> Self {
        Self { tenant, model: identity.model.clone(), adapter: identity.adapter.clone() }
    }
}

impl Registry {
    /// A session joins.
    ///
    /// # Errors
    /// Names the field in which it differs from the sessions that are live.
    pub fn join(&mut self, tenant: TenantIndex, identity: &CacheIdentity) -> Result<(), IdentityMismatch> {
        let (ours, sessions) =
            self.live.entry(Served::new(tenant, identity)).or_insert_with(|| (identity.clone(), 0));
        match ours.mismatch(identity) {
            Some(mismatch) => Err(mismatch),
            None => {
                *sessions += 1;
                Ok(())
            }
        }
    }

    /// A session that joined leaves. After the last one, another identity may come.
    pub fn leave(&mut self, tenant: TenantIndex, identity: &CacheIdentity) {
        let served = Served::new(tenant, identity);
        if let Some((_, sessions)) = self.live.get_mut(&served) {
            *sessions -= 1;
            if *sessions == 0 {
                self.live.remove(&served);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_proto::identity::AttentionGroup;

    pub(crate) fn identity() -> CacheIdentity {
        CacheIdentity {
            model: "m".into(),
            revision: "r".into(),
            tokenizer: "t".into(),
            compute_dtype: "f32".into(),
            kv_dtype: "f32".into(),
            kv_scale: "none".into(),
            groups: vec![AttentionGroup { kind: "full".into(), layers: 2, kv_heads: 1, head_dim: 8 }],
            block_tokens: 16,
            rope: String::new(),
            adapter: String::new(),
            adapter_revision: String::new(),
            layout: "canonical".into(),
            format: 1,
        }
    }

    #[test]
    fn live_sessions_of_a_model_agree_and_the_last_one_frees_it() {
        let (a, mut b) = (identity(), identity());
        b.block_tokens = 32;
        let (t0, t1) = (TenantIndex(0), TenantIndex(1));
        let mut registry = Registry::default();
        registry.join(t0, &a).unwrap();
        registry.join(t0, &a).unwrap();
        let refused = registry.join(t0, &b).unwrap_err();
        assert_eq!(
            (refused.field.as_str(), refused.ours.as_str(), refused.theirs.as_str()),
            ("block_tokens", "16", "32")
        );
        registry.join(t1, &b).unwrap();
        registry.leave(t0, &a);
        assert!(registry.join(t0, &b).is_err());
        registry.leave(t0, &a);
        registry.join(t0, &b).unwrap();
    }
}
