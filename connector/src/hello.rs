//! Pure: the first three messages of a session.

use std::os::fd::OwnedFd;

use hearth_proto::auth::{Proof, Purpose};
use hearth_proto::code::{Action, Code};
use hearth_proto::identity::IdentityMismatch;
use hearth_proto::v1;
use hearth_proto::version::{PROTOCOL, ProtocolVersion};
use hearth_transfer::{Access, Generation, Region, RegionId, RegionTicket};
use thiserror::Error;

use crate::backend::Op;
use crate::config::StoreConfig;
use crate::error::{Refusal, Violation};
use crate::local::Scope;

/// Id of the first request of a session.
pub(crate) const HELLO_ID: u64 = 1;

/// There is no session.
#[derive(Debug, Error)]
pub(crate) enum HelloError {
    /// A person has to act.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The node cannot now.
    #[error("the node does not open a session now ({code}): {message}")]
    Later { code: Code, message: String },
    /// That is no node of ours.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// The answer to a greeting.
pub(crate) fn hello(greeting: &v1::Greeting, config: &StoreConfig) -> Result<v1::Request, HelloError> {
    let theirs = ProtocolVersion { major: greeting.version_major, minor: greeting.version_minor };
    PROTOCOL.agree(theirs).map_err(Refusal::Version)?;
    let proof = Proof::new(&config.secret, Purpose::Session, &greeting.challenge);
    let hello = v1::Hello {
        version_major: PROTOCOL.major,
        version_minor: PROTOCOL.minor,
        tenant: config.tenant.to_string(),
        proof: proof.to_bytes(),
        identity: Some(v1::Identity::from(&config.identity)),
        holder: config.holder.clone(),
    };
    Ok(v1::Request { id: HELLO_ID, deadline_ms: 0, op: Some(Op::Hello(hello)) })
}

/// The memory that the node's answer to Hello gives.
pub(crate) fn welcomed(
    reply: v1::Reply,
    fds: Vec<OwnedFd>,
    config: &StoreConfig,
    scope: &Scope,
) -> Result<Vec<(u32, Region)>, HelloError> {
    if reply.id != HELLO_ID {
        return Err(Violation::UnknownRequest { id: reply.id }.into());
    }
    match reply.result {
        Some(v1::reply::Result::Welcome(welcome)) => regions(&welcome, fds, scope),
        Some(v1::reply::Result::Error(error)) => Err(refused(error, config)),
        _ => Err(Violation::WrongAnswer.into()),
    }
}

fn regions(
    welcome: &v1::Welcome,
    fds: Vec<OwnedFd>,
    scope: &Scope,
) -> Result<Vec<(u32, Region)>, HelloError> {
    if usize::try_from(welcome.payload_bytes) != Ok(scope.payload_bytes) {
        let (ours, theirs) = (scope.payload_bytes, welcome.payload_bytes);
        return Err(Violation::PayloadBytes { ours, theirs }.into());
    }
    if fds.len() != welcome.regions.len() {
        return Err(Violation::Descriptors(fds.len(), welcome.regions.len()).into());
    }
    let mut regions: Vec<(u32, Region)> = Vec::with_capacity(fds.len());
    for (named, fd) in welcome.regions.iter().zip(fds) {
        if regions.iter().any(|(id, _)| *id == named.id) {
            return Err(Violation::Region(named.id).into());
        }
        let ticket = RegionTicket {
            id: RegionId(u64::from(named.id)),
            generation: Generation(named.generation),
            bytes: named.bytes,
            transport: Vec::new(),
        };
        let region = Region::import(&ticket, fd, Access::ReadWrite).map_err(Violation::Memory)?;
        regions.push((named.id, region));
    }
    Ok(regions)
}

/// A node's no to Hello, by what the client does next.
fn refused(error: v1::Error, config: &StoreConfig) -> HelloError {
    let code = Code::from_number(error.code);
    let message = error.message;
    match (code, error.mismatch) {
        (Code::IdentityMismatch, Some(v1::Mismatch { field, ours, theirs })) => {
            Refusal::Identity(IdentityMismatch { field, ours, theirs }).into()
        }
        (Code::Unauthenticated, _) => Refusal::Secret { tenant: config.tenant.to_string(), message }.into(),
        (Code::VersionUnsupported, _) => Refusal::VersionThere(message).into(),
        _ => match code.action() {
            Action::GiveUp | Action::FixCall => Refusal::Session { code, message }.into(),
            Action::Retry | Action::Reconnect | Action::TreatAsMiss => HelloError::Later { code, message },
        },
    }
}
