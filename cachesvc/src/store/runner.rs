//! The thread of a shard: takes events from its mailbox, one at a time, and carries out what the shard answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use hearth_proto::code::Code;
use hearth_proto::header::HEADER_BYTES;
use hearth_proto::v1::FeedMessage;
use hearth_transfer::{Region, RegionSlice};
use tokio::sync::{Notify, mpsc, oneshot};

use super::message::{Answer, Effect, Event, PinnedSpan, SubscriberId, TenantIndex};
use super::shard::{Shard, TICK};
use crate::tier::nvme::{Command, Done, NvmeTier, ReadError, WriteError};

/// Events that wait for a shard at most. Beyond it, callers are told that the node is overloaded.
pub const MAILBOX_EVENTS_MAX: usize = 4096;
/// Batches of events that wait for one reader of the feed. A reader that is further behind is cut off and joins anew.
pub const FEED_BATCHES_MAX: usize = 4096;

/// Where answers go.
pub type Reply = oneshot::Sender<Result<Answer, Code>>;

/// What a shard's thread is sent.
#[derive(Debug)]
pub enum Message {
    /// Something happened.
    Event(Event<Reply>),
    /// A reader joins the feed of a tenant.
    Subscribe {
        /// Whose feed.
        tenant: TenantIndex,
        /// The reader's name.
        subscriber: SubscriberId,
        /// Where its messages go.
        feed: Feed,
    },
    /// End the thread.
    Stop,
}

/// The way to a reader of the feed.
#[derive(Clone, Debug)]
pub struct Feed {
    /// Takes batches.
    pub batches: mpsc::Sender<Vec<FeedMessage>>,
    /// Told when the reader has fallen behind and gets no more: it is to join anew.
    pub cut: Arc<Notify>,
}

/// The way to a shard.
#[derive(Clone, Debug)]
pub struct ShardHandle {
    mailbox: SyncSender<Message>,
}

impl ShardHandle {
    /// Sends an event that may be refused. Never blocks.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the mailbox is full or the shard has ended.
    pub fn try_send(&self, message: Message) -> Result<(), Code> {
        self.mailbox.try_send(message).map_err(|_| Code::Unavailable)
    }

    /// Sends an event that must arrive: something is given back. When the mailbox is full a thread waits for it, the
    /// caller does not. Needs a tokio runtime.
    pub fn deliver(&self, message: Message) {
        match self.mailbox.try_send(message) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(message)) => {
                let mailbox = self.mailbox.clone();
                // A shard that has ended holds nothing that could be given back.
                tokio::task::spawn_blocking(move || mailbox.send(message).ok());
            }
        }
    }

    /// Sends an event and waits for its answer.
    ///
    /// # Errors
    /// What the shard answers, or [`Code::Unavailable`] when it cannot be asked.
    pub async fn ask(&self, event: impl FnOnce(Reply) -> Event<Reply>) -> Result<Answer, Code> {
        let (reply, answer) = oneshot::channel();
        self.try_send(Message::Event(event(reply)))?;
        answer.await.unwrap_or(Err(Code::Unavailable))
    }

    /// Passes on a completion of the NVMe tier; blocks while the mailbox is full.
    pub fn nvme_done(&self, done: Done) {
        // Nobody waits for completions after the shard has ended.
        self.mailbox.send(Message::Event(Event::Nvme(done))).ok();
    }
}

/// The mailbox of a shard that does not run yet.
pub fn mailbox() -> (ShardHandle, Receiver<Message>) {
    let (mailbox, messages) = sync_channel(MAILBOX_EVENTS_MAX);
    (ShardHandle { mailbox }, messages)
}

/// What a shard's thread works on.
#[derive(Debug)]
pub struct Runner {
    shard: Shard<Reply>,
    /// This shard's arena of each tenant.
    arenas: Vec<Region>,
    nvme: Option<NvmeTier>,
    feeds: HashMap<SubscriberId, Feed>,
}

impl Runner {
    /// A runner over the shard's share of each tier.
    pub fn new(shard: Shard<Reply>, arenas: Vec<Region>, nvme: Option<NvmeTier>) -> Self {
        Self { shard, arenas, nvme, feeds: HashMap::new() }
    }

    /// Starts the thread. It ends with [`Message::Stop`], after what the NVMe tier has in flight.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn(mut self, name: String, messages: Receiver<Message>) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name).spawn(move || {
            self.run(&messages);
            // Before the tier is dropped: it finishes what is in flight, and must not wait for a reader.
            drop(messages);
            drop(self.nvme.take());
        })
    }

    fn run(&mut self, messages: &Receiver<Message>) {
        let mut tick_at = Instant::now() + TICK;
        loop {
            let message = if self.shard.is_waiting() {
                messages.recv_timeout(tick_at.saturating_duration_since(Instant::now()))
            } else {
                messages.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            let now = Instant::now();
            match message {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Message::Event(event)) => self.step(|shard| shard.apply(event, now)),
                Ok(Message::Subscribe { tenant, subscriber, feed }) => {
                    self.feeds.insert(subscriber, feed);
                    self.step(|shard| shard.apply(Event::Subscribe { tenant, subscriber }, now));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if now >= tick_at {
                tick_at = now + TICK;
                self.step(|shard| shard.tick(now));
            }
        }
    }

    /// Applies, carries out, and applies what carrying out brought up, until nothing does.
    fn step(&mut self, apply: impl FnOnce(&mut Shard<Reply>) -> Vec<Effect<Reply>>) {
        let mut effects = apply(&mut self.shard);
        while !effects.is_empty() {
            let events: Vec<_> = effects.into_iter().filter_map(|effect| self.carry_out(effect)).collect();
            effects = Vec::new();
            for event in events {
                effects.extend(self.shard.apply(event, Instant::now()));
            }
        }
    }

    /// Does one effect. What it brings up at once is returned.
    fn carry_out(&mut self, effect: Effect<Reply>) -> Option<Event<Reply>> {
        match effect {
            // A caller that is gone has ended its session, or is about to: that gives back what it was granted.
            Effect::Reply(to, answer) => drop(to.send(answer)),
            Effect::SealSlot { tenant, offset, header } => {
                let at = byte(offset);
                let slot = self.arena(tenant).slice(at..at + HEADER_BYTES).expect("slots lie in their arena");
                slot.copy_from(header.encode().as_slice()).expect("our own arena is writable");
            }
            Effect::NvmeWrite { tag, slot, from, header, ack } => {
                let payload = self.payload(from);
                return self.command(Command::Write { tag, slot, header: *header, payload, ack });
            }
            Effect::NvmeRead { tag, slot, into, expect } => {
                let payload = self.payload(into);
                return self.command(Command::Read { tag, slot, expect: *expect, payload });
            }
            Effect::NvmeErase { tag, slot } => {
                let ack = crate::tier::nvme::Ack::Written;
                return self.command(Command::Erase { tag, slot, ack });
            }
            Effect::NvmeCreate { tag, segment, class } => {
                return self.command(Command::CreateSegment { tag, segment, class });
            }
            Effect::Publish(reader, batch) => {
                let feed = self.feeds.get(&reader)?;
                if feed.batches.try_send(batch).is_err() {
                    feed.cut.notify_one();
                    self.feeds.remove(&reader);
                    return Some(Event::Unsubscribe { subscriber: reader });
                }
            }
        }
        None
    }

    /// Hands a command to the tier; one that it does not take has failed.
    fn command(&self, command: Command) -> Option<Event<Reply>> {
        let refused = match &self.nvme {
            Some(nvme) => nvme.try_send(command).err()?,
            None => command,
        };
        let done = match refused {
            Command::Write { tag, slot, .. } => {
                Done::Written { tag, result: Err(WriteError::NoSegment(slot.segment)) }
            }
            Command::Read { tag, slot, .. } => {
                Done::Read { tag, result: Err(ReadError::NoSegment(slot.segment)) }
            }
            Command::Erase { tag, slot, .. } => {
                Done::Erased { tag, result: Err(WriteError::NoSegment(slot.segment)) }
            }
            Command::CreateSegment { .. } | Command::DeleteSegment { .. } => return None,
        };
        Some(Event::Nvme(done))
    }

    fn payload(&self, span: PinnedSpan) -> RegionSlice {
        let (from, to) = (byte(span.offset) + HEADER_BYTES, byte(span.offset + span.class.get()));
        self.arena(span.tenant).slice(from..to).expect("slots lie in their arena")
    }

    fn arena(&self, tenant: TenantIndex) -> &Region {
        &self.arenas[usize::from(tenant.0)]
    }
}

fn byte(offset: u64) -> usize {
    usize::try_from(offset).expect("an arena is mapped, so its offsets fit usize")
}
