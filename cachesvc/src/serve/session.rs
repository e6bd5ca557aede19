//! One connection of the local protocol.

mod ops;
mod wire;

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hearth_proto::auth::Purpose;
use hearth_proto::code::Code;
use hearth_proto::identity::CacheIdentity;
use hearth_proto::layout::BlockLayout;
use hearth_proto::limit::{INFLIGHT_REQUESTS_MAX, NAME_BYTES_MAX, PAYLOAD_BYTES_MAX};
use hearth_proto::v1::{Greeting, Hello, Mismatch, Region, Reply, Request, Welcome, reply, request};
use hearth_proto::version::{PROTOCOL, ProtocolVersion};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use self::wire::{FrameReader, WireError, send};
use crate::node::Shared;
use crate::store::message::{Caller, Event, GrantId, SessionId, Shape};
use crate::store::runner::Message;

/// Time that a client has for its Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a client has to take a reply. One that reads slower is cut off.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection before its Hello.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    shared: Arc<Shared>,
}

/// A connection after its Hello: who it is, and what it was granted.
#[derive(Debug)]
struct Client {
    shared: Arc<Shared>,
    caller: Caller,
    identity: CacheIdentity,
    grants: Mutex<Grants>,
}

/// Leases and reservations of a session, each made of parts in shards.
#[derive(Debug, Default)]
struct Grants {
    last: u64,
    parts: HashMap<u64, Vec<(usize, GrantId)>>,
}

/// Why a Hello was refused.
#[derive(Debug)]
struct Refused {
    code: Code,
    message: String,
    mismatch: Option<Mismatch>,
}

impl Refused {
    fn new(code: Code, message: impl ToString) -> Self {
        Self { code, message: message.to_string(), mismatch: None }
    }
}

impl Session {
    /// A session that will be known by `id`.
    pub fn new(id: SessionId, shared: Arc<Shared>) -> Self {
        Self { id, shared }
    }

    /// Speaks with the client until either side ends it, then gives back what it held.
    pub async fn run(self, stream: UnixStream) {
        let id = self.id;
        let metrics = self.shared.clone();
        metrics.sessions.inc();
        match self.speak(stream).await {
            Ok(()) => tracing::debug!(session = id.0, "client left"),
            Err(error) => tracing::debug!(session = id.0, %error, "client cut off"),
        }
        metrics.sessions.dec();
    }

    async fn speak(self, stream: UnixStream) -> Result<(), WireError> {
        let stream = Arc::new(stream);
        let mut reader = FrameReader::new(stream.clone());
        let challenge = self.shared.challenger.challenge(Instant::now());
        let greeting = Greeting {
            version_major: PROTOCOL.major,
            version_minor: PROTOCOL.minor,
            challenge: challenge.clone(),
            node: self.shared.name.clone(),
            incarnation: self.shared.incarnation,
        };
        send(&stream, &greeting, &[], HELLO_TIMEOUT).await?;
        let hello = tokio::time::timeout(HELLO_TIMEOUT, reader.next::<Request>()).await;
        let Some(request) = hello.map_err(|_| WireError::Timeout)?? else { return Ok(()) };
        match self.hello(request.op, &challenge) {
            Ok((client, welcome)) => {
                let client = Arc::new(client);
                let result = client.clone().welcomed((request.id, welcome), &stream, reader).await;
                client.close();
                result
            }
            Err(refused) => {
                tracing::warn!(session = self.id.0, code = %refused.code, reason = %refused.message, "client refused");
                let error = hearth_proto::v1::Error {
                    code: refused.code as u32,
                    message: refused.message,
                    mismatch: refused.mismatch,
                };
                let reply = Reply { id: request.id, result: Some(reply::Result::Error(error)) };
                send(&stream, &reply, &[], HELLO_TIMEOUT).await
            }
        }
    }

    /// Checks who the client is and what it will ask for.
    fn hello(&self, op: Option<request::Op>, challenge: &[u8]) -> Result<(Client, Welcome), Refused> {
        let Some(request::Op::Hello(hello)) = op else {
            return Err(Refused::new(Code::OutOfOrder, "the first request of a session is Hello"));
        };
        let theirs = ProtocolVersion { major: hello.version_major, minor: hello.version_minor };
        PROTOCOL.agree(theirs).map_err(|error| Refused::new(Code::VersionUnsupported, error))?;
        let tenant = self.shared.tenants.find(&hello.tenant);
        let proven = tenant.filter(|(_, tenant)| {
            let proof = (challenge, hello.proof.as_slice());
            self.shared.challenger.accepts(proof, &tenant.secret, Purpose::Session, Instant::now())
        });
        let Some((index, tenant)) = proven else {
            let message =
                "no such tenant, or the wrong secret: give the client the key file that the node uses";
            return Err(Refused::new(Code::Unauthenticated, message));
        };
        let (identity, layout) = shape(&hello)?;
        let payload_bytes = layout.payload_bytes() as u64;
        let shape = Shape { fingerprint: identity.fingerprint(), payload_bytes };
        if shape.class().get() > self.shared.segment_bytes_min {
            let message =
                format!("a block of {payload_bytes} bytes does not fit a segment: use fewer block tokens");
            return Err(Refused::new(Code::TooLarge, message));
        }
        self.shared.registry().join(index, &identity).map_err(|mismatch| Refused {
            code: Code::IdentityMismatch,
            message: mismatch.to_string(),
            mismatch: Some(Mismatch { field: mismatch.field, ours: mismatch.ours, theirs: mismatch.theirs }),
        })?;
        let regions = self.shared.arenas[usize::from(index.0)].iter().map(|region| Region {
            id: region_id(region),
            generation: region.generation().0,
            bytes: region.len() as u64,
        });
        let welcome = Welcome { session: self.id.0, regions: regions.collect(), payload_bytes };
        let range_bytes = u32::try_from(layout.layer_bytes()).expect("bounded by PAYLOAD_BYTES_MAX");
        const { assert!(PAYLOAD_BYTES_MAX <= u32::MAX as u64) };
        let caller = Caller {
            session: self.id,
            tenant: index,
            shape,
            range_bytes,
            holder: hello.holder.as_str().into(),
        };
        tracing::info!(
            session = self.id.0, tenant = %tenant.name, holder = %hello.holder, model = %identity.model,
            fingerprint = %shape.fingerprint.short(), "client joined"
        );
        Ok((Client { shared: self.shared.clone(), caller, identity, grants: Mutex::default() }, welcome))
    }
}

/// The identity that a Hello names, and the layout of its blocks.
fn shape(hello: &Hello) -> Result<(CacheIdentity, BlockLayout), Refused> {
    let invalid = |message: String| Refused::new(Code::InvalidArgument, message);
    if hello.holder.len() > NAME_BYTES_MAX {
        return Err(invalid(format!("a holder name has at most {NAME_BYTES_MAX} bytes")));
    }
    let identity = hello.identity.clone().ok_or_else(|| invalid("Hello carries no identity".to_owned()))?;
    let identity = CacheIdentity::try_from(identity).map_err(|error| invalid(error.to_string()))?;
    if identity.format != hearth_proto::version::BLOCK_FORMAT {
        return Err(Refused::new(
            Code::VersionUnsupported,
            format!("block format {} is not the node's: run the same release on both sides", identity.format),
        ));
    }
    let layout = BlockLayout::new(&identity).map_err(|error| invalid(error.to_string()))?;
    Ok((identity, layout))
}

/// The number by which messages name a region: its id, which counts up from the start of the process.
fn region_id(region: &hearth_transfer::Region) -> u32 {
    u32::try_from(region.id().0).expect("a node has far fewer than 2^32 regions")
}

impl Client {
    /// The number of this tenant's region in a shard.
    fn region_of(&self, shard: usize) -> u32 {
        region_id(&self.shared.arenas[usize::from(self.caller.tenant.0)][shard])
    }

    /// Answers the Hello with the tenant's regions, then serves requests.
    async fn welcomed(
        self: Arc<Self>,
        (id, welcome): (u64, Welcome),
        stream: &Arc<UnixStream>,
        reader: FrameReader,
    ) -> Result<(), WireError> {
        let (tenant, fingerprint) = (self.caller.tenant, self.caller.shape.fingerprint);
        let identity = Box::new((&self.identity).into());
        self.shared.shards[0].deliver(Message::Event(Event::Register { tenant, identity, fingerprint }));
        let exports = &self.shared.exports[usize::from(tenant.0)];
        let descriptors: Vec<_> = exports.iter().map(AsFd::as_fd).collect();
        let reply = Reply { id, result: Some(reply::Result::Welcome(welcome)) };
        send(stream, &reply, &descriptors, HELLO_TIMEOUT).await?;
        self.serve(stream.clone(), reader).await
    }

    /// Works on requests side by side, within the bound; replies go out through one writer.
    async fn serve(
        self: Arc<Self>,
        stream: Arc<UnixStream>,
        mut reader: FrameReader,
    ) -> Result<(), WireError> {
        let (replies, mut outgoing) = mpsc::channel::<Reply>(INFLIGHT_REQUESTS_MAX);
        let writer = async {
            while let Some(reply) = outgoing.recv().await {
                send(&stream, &reply, &[], WRITE_TIMEOUT).await?;
            }
            Ok(())
        };
        let client = self.clone();
        let requests = async move {
            let credit = Arc::new(Semaphore::new(INFLIGHT_REQUESTS_MAX));
            let mut working = JoinSet::new();
            while let Some(request) = reader.next::<Request>().await? {
                while working.try_join_next().is_some() {}
                let Ok(permit) = credit.clone().acquire_owned().await else { break };
                let (client, replies) = (client.clone(), replies.clone());
                working.spawn(async move {
                    let id = request.id;
                    if let Some(result) = client.answer(request).await {
                        // The writer is gone only when the connection is.
                        replies.send(Reply { id, result: Some(result) }).await.ok();
                    }
                    drop(permit);
                });
            }
            working.shutdown().await;
            Ok::<(), WireError>(())
        };
        tokio::select! {
            result = requests => result,
            result = writer => result,
        }
    }

    /// Gives back everything, in every shard.
    fn close(&self) {
        for shard in &self.shared.shards {
            shard.deliver(Message::Event(Event::CloseSession { session: self.caller.session }));
        }
        self.shared.registry().leave(self.caller.tenant, &self.identity);
    }
}
