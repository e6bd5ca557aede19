//! Reserve, seal, abort: the writing side.

use std::time::Instant;

use hearth_proto::code::Code;
use hearth_proto::header::{BlockHeader, Generation, Location};
use hearth_proto::v1::{Durability, SealedBlock, Tier};

use super::{RESERVATION_TTL, Shard};
use crate::slots::Slot;
use crate::store::block::{Block, BlockId, OnNvme, Pinned};
use crate::store::message::{Answer, Caller, Effect, GrantId, Link, Reserved, SessionId, Shape, TenantIndex};

/// Slots that a session may write.
#[derive(Debug)]
pub(super) struct Reservation {
    session: SessionId,
    tenant: TenantIndex,
    shape: Shape,
    range_bytes: u32,
    /// The run as the client gave it, as far as it concerns this shard.
    links: Vec<Link>,
    slots: Vec<(Link, Slot, Generation)>,
    expires: Instant,
    /// Past its time. The slots are kept until the client gives up or goes, as it may still be writing to them.
    expired: bool,
}

/// A seal that waits for its blocks to be on NVMe.
#[derive(Debug)]
pub(super) struct PendingSeal<R> {
    waiting: usize,
    failed: bool,
    reply: R,
}

impl<R> Shard<R> {
    pub(super) fn reserve(
        &mut self,
        caller: &Caller,
        links: Vec<Link>,
        (first, now): (u32, Instant),
        reply: R,
    ) {
        let class = caller.shape.class();
        let grant = self.next_grant();
        let mut reserved = Reserved::default();
        let mut slots = Vec::new();
        let wanted: Vec<Link> = links.iter().copied().filter(|link| link.index >= first).collect();
        for (at, link) in wanted.iter().enumerate() {
            if self.is_stored_or_being_written(caller.tenant, link) {
                continue;
            }
            let Some(slot) = self.take_pinned(caller.tenant, class) else {
                reserved.refused = u32::try_from(wanted.len() - at).unwrap_or(u32::MAX);
                break;
            };
            let generation = self.next_generation();
            let owner = self.tenant(caller.tenant);
            reserved.slots.push((link.index, owner.slots.offset(slot), generation));
            owner.writing.insert(link.key, grant);
            slots.push((*link, slot, generation));
        }
        self.metrics.reserve_refused(reserved.refused);
        if !slots.is_empty() {
            reserved.reservation = Some(grant);
            let reservation = Reservation {
                session: caller.session,
                tenant: caller.tenant,
                shape: caller.shape,
                range_bytes: caller.range_bytes,
                links,
                slots,
                expires: now + RESERVATION_TTL,
                expired: false,
            };
            self.reservations.insert(grant, reservation);
        }
        self.reply(reply, Ok(Answer::Reserved(reserved)));
    }

    fn is_stored_or_being_written(&mut self, tenant: TenantIndex, link: &Link) -> bool {
        let owner = self.tenant(tenant);
        let stored = owner.blocks.find(&link.key).is_some_and(|id| {
            let block = owner.blocks.at(id);
            block.pinned != Pinned::None || block.nvme != OnNvme::None
        });
        stored || owner.writing.contains_key(&link.key)
    }

    /// Makes blocks visible. All or none: one wrong checksum list refuses the seal.
    pub(super) fn seal(
        &mut self,
        (session, grant): (SessionId, GrantId),
        sealed: &[SealedBlock],
        durability: Durability,
        reply: R,
    ) {
        let reservation = match self.take_reservation(session, grant) {
            Some(reservation) => reservation,
            None => return self.reply(reply, Err(Code::Stale)),
        };
        let valid = sealed.iter().all(|block| {
            let ranges = reservation.shape.payload_bytes.div_ceil(u64::from(reservation.range_bytes));
            block.range_bytes == reservation.range_bytes && block.range_crcs.len() as u64 == ranges
        });
        if !valid || reservation.expired {
            self.free_slots(&reservation, |_| true);
            return self.reply(reply, Err(if valid { Code::Stale } else { Code::InvalidArgument }));
        }
        let named = |index: u32| sealed.iter().find(|block| block.index == index);
        self.free_slots(&reservation, |link| named(link.index).is_none());
        let to_nvme = self.nvme_slots.is_some();
        let wait = durability == Durability::Nvme;
        let mut fresh = Vec::new();
        for (link, slot, generation) in &reservation.slots {
            let Some(block) = named(link.index) else { continue };
            let header = self.header(&reservation, link, (*generation, block));
            let durable = if wait { vec![grant] } else { Vec::new() };
            let nvme =
                if to_nvme { OnNvme::Queued { header: header.clone(), durable } } else { OnNvme::None };
            self.make_visible(
                &reservation,
                link,
                Pinned::Ready { slot: *slot, generation: *generation },
                nvme,
            );
            let offset = self.tenant(reservation.tenant).slots.offset(*slot);
            self.effects.push(Effect::SealSlot { tenant: reservation.tenant, offset, header });
            if to_nvme {
                self.write_queue.push_back((reservation.tenant, link.key));
            }
            self.metrics.sealed();
            fresh.push(*link);
        }
        self.use_run(&reservation);
        self.stored(reservation.tenant, Tier::Pinned, &fresh);
        match (wait, to_nvme) {
            (true, false) if !fresh.is_empty() => self.reply(reply, Err(Code::Io)),
            (true, true) if !fresh.is_empty() => {
                self.seals.insert(grant, PendingSeal { waiting: fresh.len(), failed: false, reply });
            }
            _ => self.reply(reply, Ok(Answer::Done)),
        }
    }

    fn header(
        &mut self,
        reservation: &Reservation,
        link: &Link,
        (generation, block): (Generation, &SealedBlock),
    ) -> Box<BlockHeader> {
        Box::new(BlockHeader {
            key: link.key,
            fingerprint: reservation.shape.fingerprint,
            tenant: self.tenant(reservation.tenant).id,
            parent: link.parent,
            depth: link.index,
            generation,
            location: Location::MEMORY,
            payload_bytes: reservation.shape.payload_bytes,
            range_bytes: reservation.range_bytes,
            range_crcs: block.range_crcs.clone(),
        })
    }

    /// Puts a block into the index, or gives a block without copies, which only a lease keeps, its copies again.
    fn make_visible(&mut self, reservation: &Reservation, link: &Link, pinned: Pinned, nvme: OnNvme) {
        let blocks = &mut self.tenant(reservation.tenant).blocks;
        match blocks.find(&link.key) {
            Some(id) => blocks.change(id, |block| {
                block.shape = reservation.shape;
                (block.pinned, block.nvme) = (pinned, nvme);
            }),
            None => {
                let mut block = Block::new(link.key, link.parent, link.index, reservation.shape);
                (block.pinned, block.nvme) = (pinned, nvme);
                blocks.insert(block);
            }
        }
    }

    fn use_run(&mut self, reservation: &Reservation) {
        let blocks = &mut self.tenant(reservation.tenant).blocks;
        let run: Vec<BlockId> = reservation.links.iter().filter_map(|link| blocks.find(&link.key)).collect();
        blocks.touch(&run);
    }

    /// Writes to NVMe that a seal waits for ended.
    pub(super) fn written(&mut self, durable: Vec<GrantId>, well: bool) {
        for grant in durable {
            let Some(seal) = self.seals.get_mut(&grant) else { continue };
            seal.waiting -= 1;
            seal.failed |= !well;
            if seal.waiting == 0
                && let Some(seal) = self.seals.remove(&grant)
            {
                let answer = if seal.failed { Err(Code::Io) } else { Ok(Answer::Done) };
                self.reply(seal.reply, answer);
            }
        }
    }

    pub(super) fn abort(&mut self, session: SessionId, grant: GrantId) {
        if let Some(reservation) = self.take_reservation(session, grant) {
            self.free_slots(&reservation, |_| true);
        }
    }

    pub(super) fn abort_session(&mut self, session: SessionId) {
        let mine = self.reservations.iter().filter(|(_, reservation)| reservation.session == session);
        let grants: Vec<GrantId> = mine.map(|(&grant, _)| grant).collect();
        for grant in grants {
            self.abort(session, grant);
        }
    }

    /// Marks reservations that were not sealed in time. Others may write their blocks now.
    pub(super) fn expire_reservations(&mut self, now: Instant) {
        let mut void = Vec::new();
        for reservation in self.reservations.values_mut() {
            if reservation.expires <= now && !reservation.expired {
                reservation.expired = true;
                void.extend(reservation.slots.iter().map(|(link, ..)| (reservation.tenant, link.key)));
            }
        }
        for (tenant, key) in void {
            self.tenant(tenant).writing.remove(&key);
        }
    }

    fn take_reservation(&mut self, session: SessionId, grant: GrantId) -> Option<Reservation> {
        self.reservations.get(&grant).filter(|reservation| reservation.session == session)?;
        let reservation = self.reservations.remove(&grant)?;
        for (link, ..) in &reservation.slots {
            let writing = &mut self.tenants[usize::from(reservation.tenant.0)].writing;
            if writing.get(&link.key) == Some(&grant) {
                writing.remove(&link.key);
            }
        }
        Some(reservation)
    }

    fn free_slots(&mut self, reservation: &Reservation, unused: impl Fn(&Link) -> bool) {
        for (link, slot, _) in &reservation.slots {
            if unused(link) {
                self.free_pinned(reservation.tenant, *slot);
            }
        }
    }
}
