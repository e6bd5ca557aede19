//! What engines hold in their own pages: soft state that dies with their sessions.

use std::collections::HashSet;
use std::sync::Arc;

use hearth_proto::key::BlockKey;
use hearth_proto::limit::ADVERTISED_BLOCKS_MAX;
use hearth_proto::v1::Tier;

use super::Shard;
use super::feed::Held;
use crate::store::message::{Caller, Link, SessionId, TenantIndex};

/// What one session advertises.
#[derive(Debug)]
pub(super) struct HeldBy {
    tenant: TenantIndex,
    holder: Arc<str>,
    keys: HashSet<BlockKey>,
}

impl<R> Shard<R> {
    /// Publishes blocks that the caller's engine holds. Beyond the limit per session they are not taken.
    pub(super) fn advertise(&mut self, caller: &Caller, links: &[Link]) {
        let mut fresh = Vec::new();
        for link in links {
            let mine = self.session_held.entry(caller.session).or_insert_with(|| HeldBy {
                tenant: caller.tenant,
                holder: caller.holder.clone(),
                keys: HashSet::new(),
            });
            if mine.keys.len() >= ADVERTISED_BLOCKS_MAX || !mine.keys.insert(link.key) {
                continue;
            }
            let held = self.tenant(caller.tenant).held.entry(caller.holder.clone()).or_default();
            let held =
                held.entry(link.key).or_insert(Held { parent: link.parent, depth: link.index, sessions: 0 });
            held.sessions += 1;
            if held.sessions == 1 {
                fresh.push(*link);
            }
        }
        self.stored_at(caller.tenant, (Tier::Engine, &caller.holder), &fresh);
    }

    pub(super) fn withdraw(&mut self, caller: &Caller, keys: &[BlockKey]) {
        for key in keys {
            let mine = self.session_held.get_mut(&caller.session);
            if mine.is_some_and(|mine| mine.keys.remove(key)) {
                self.let_go(caller.tenant, &caller.holder, key);
            }
        }
    }

    pub(super) fn withdraw_session(&mut self, session: SessionId) {
        let Some(HeldBy { tenant, holder, keys }) = self.session_held.remove(&session) else { return };
        for key in keys {
            self.let_go(tenant, &holder, &key);
        }
    }

    /// One session fewer holds the block; the last one to go takes it out of the feed.
    fn let_go(&mut self, tenant: TenantIndex, holder: &Arc<str>, key: &BlockKey) {
        let owner = self.tenant(tenant);
        let Some(blocks) = owner.held.get_mut(holder) else { return };
        let Some(held) = blocks.get_mut(key) else { return };
        held.sessions -= 1;
        if held.sessions > 0 {
            return;
        }
        blocks.remove(key);
        if blocks.is_empty() {
            owner.held.remove(holder);
        }
        self.removed_at(tenant, (Tier::Engine, holder), key);
    }
}
