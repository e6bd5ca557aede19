//! Pure: settings, two sets of capabilities and a need → one transport, and why.

use std::fmt;

use crate::caps::{Caps, Reach, TransportKind};
use crate::region::MemoryKind;

/// What the operator wants of one transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Setting {
    /// Use it where it is the best that works.
    #[default]
    Auto,
    /// Use it, or fail to start.
    Require,
    /// Never use it.
    Off,
}

/// What is to be moved, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Need {
    /// Memory on the side that posts.
    pub local: MemoryKind,
    /// Memory on the side that owns the other end.
    pub remote: MemoryKind,
    /// Where the peer is.
    pub distance: Reach,
    /// One-sided reads are needed.
    pub read: bool,
    /// One-sided writes are needed.
    pub write: bool,
}

/// Both sides' capabilities.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// What this process probed.
    pub ours: &'a [Caps],
    /// What the peer advertised.
    pub theirs: &'a [Caps],
}

/// The transport picked, what it can do here, and the verdict on every other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    /// What both sides together can do over it.
    pub caps: Caps,
    /// One verdict for each transport this process has, nearest first.
    pub verdicts: Vec<(TransportKind, Verdict)>,
}

/// Why a transport was picked or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Picked.
    Picked,
    /// Works, but a nearer one was picked.
    Behind(TransportKind),
    /// Works, but another is required.
    NotRequired,
    /// Switched off.
    Off,
    /// This process does not have it.
    NotOurs,
    /// The peer does not have it.
    NotTheirs,
    /// The peer is farther away than it goes.
    TooFar(Reach),
    /// It cannot post from or to this kind of memory here.
    LocalMemory(MemoryKind),
    /// It cannot reach this kind of memory at the peer.
    RemoteMemory(MemoryKind),
    /// It has no one-sided read between these two.
    NoRead,
    /// It has no one-sided write between these two.
    NoWrite,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Picked => f.write_str("picked"),
            Self::Behind(picked) => write!(f, "works, but {picked} is nearer"),
            Self::NotRequired => f.write_str("works, but another transport is required"),
            Self::Off => f.write_str("switched off"),
            Self::NotOurs => f.write_str("not available in this process"),
            Self::NotTheirs => f.write_str("not available at the peer"),
            Self::TooFar(distance) => write!(f, "does not reach across {distance}"),
            Self::LocalMemory(kind) => write!(f, "cannot use {kind:?} memory here"),
            Self::RemoteMemory(kind) => write!(f, "cannot use {kind:?} memory at the peer"),
            Self::NoRead => f.write_str("cannot read from the peer"),
            Self::NoWrite => f.write_str("cannot write to the peer"),
        }
    }
}

/// No transport serves the need.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickError {
    /// A required transport cannot be used.
    #[error("transport {kind} is required but {verdict}; repair that, or set it to auto")]
    Required {
        /// The transport.
        kind: TransportKind,
        /// What is in the way.
        verdict: Verdict,
    },
    /// None works.
    #[error("no transport reaches this peer ({}); enable one on both sides", Verdicts(verdicts))]
    NoneWorks {
        /// One verdict for each transport this process has.
        verdicts: Vec<(TransportKind, Verdict)>,
    },
}

/// Picks the nearest transport that works. A transport without a setting is on [`Setting::Auto`]; of
/// several required ones each must work, and the nearest of them is picked.
///
/// # Errors
/// [`PickError`], with the reasons.
pub fn pick(settings: &[(TransportKind, Setting)], offer: Offer<'_>, need: &Need) -> Result<Pick, PickError> {
    let setting = |kind| settings.iter().find(|(of, _)| *of == kind).map_or(Setting::Auto, |(_, s)| *s);
    let required = |kind| setting(kind) == Setting::Require;
    let any_required = settings.iter().any(|(_, setting)| *setting == Setting::Require);

    let mut kinds: Vec<TransportKind> = offer.ours.iter().map(|caps| caps.kind).collect();
    kinds.extend(settings.iter().filter(|(_, s)| *s == Setting::Require).map(|(kind, _)| *kind));
    kinds.sort_unstable();
    kinds.dedup();

    let mut picked: Option<Caps> = None;
    let mut verdicts = Vec::with_capacity(kinds.len());
    for kind in kinds {
        let judged = if setting(kind) == Setting::Off { Err(Verdict::Off) } else { judge(kind, offer, need) };
        let verdict = match (judged, picked) {
            (Err(verdict), _) if required(kind) => return Err(PickError::Required { kind, verdict }),
            (Err(verdict), _) => verdict,
            (Ok(_), _) if any_required && !required(kind) => Verdict::NotRequired,
            (Ok(_), Some(nearer)) => Verdict::Behind(nearer.kind),
            (Ok(caps), None) => {
                picked = Some(caps);
                Verdict::Picked
            }
        };
        verdicts.push((kind, verdict));
    }
    match picked {
        Some(caps) => Ok(Pick { caps, verdicts }),
        None => Err(PickError::NoneWorks { verdicts }),
    }
}

fn judge(kind: TransportKind, offer: Offer<'_>, need: &Need) -> Result<Caps, Verdict> {
    let of = |set: &[Caps]| set.iter().find(|caps| caps.kind == kind).copied();
    let ours = of(offer.ours).ok_or(Verdict::NotOurs)?;
    let theirs = of(offer.theirs).ok_or(Verdict::NotTheirs)?;
    let both = ours.intersect(&theirs).ok_or(Verdict::NotTheirs)?;
    match () {
        () if both.reach < need.distance => Err(Verdict::TooFar(need.distance)),
        () if !both.local.has(need.local) => Err(Verdict::LocalMemory(need.local)),
        () if !both.remote.has(need.remote) => Err(Verdict::RemoteMemory(need.remote)),
        () if need.read && !both.read => Err(Verdict::NoRead),
        () if need.write && !both.write => Err(Verdict::NoWrite),
        () => Ok(both),
    }
}

struct Verdicts<'a>(&'a [(TransportKind, Verdict)]);

impl fmt::Display for Verdicts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("this process has none");
        }
        for (index, (kind, verdict)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{kind}: {verdict}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caps::{Limit, MemoryKinds};

    const HOST: MemoryKinds = MemoryKinds { host: true, host_shared: true, device: false };

    fn caps(kind: TransportKind, reach: Reach) -> Caps {
        Caps {
            kind,
            reach,
            local: HOST,
            remote: HOST,
            read: true,
            write: true,
            segments_max: Limit::Unlimited,
            op_bytes_max: Limit::Unlimited,
            inflight_ops_max: 64,
            digest_fused: false,
            direct: false,
        }
    }

    fn need(distance: Reach) -> Need {
        Need { local: MemoryKind::Host, remote: MemoryKind::HostShared, distance, read: true, write: false }
    }

    const SHM: TransportKind = TransportKind::Shm;
    const TCP: TransportKind = TransportKind::Tcp;

    fn both() -> Vec<Caps> {
        vec![caps(TCP, Reach::Network), caps(SHM, Reach::Host)]
    }

    #[test]
    fn the_nearest_that_works_is_picked_and_the_rest_explained() {
        let all = both();
        let offer = Offer { ours: &all, theirs: &all };
        let near = pick(&[], offer, &need(Reach::Host)).expect("shm works");
        assert_eq!(near.caps.kind, SHM);
        assert_eq!(near.verdicts, [(SHM, Verdict::Picked), (TCP, Verdict::Behind(SHM))]);
        let far = pick(&[], offer, &need(Reach::Network)).expect("tcp works");
        assert_eq!(far.verdicts, [(SHM, Verdict::TooFar(Reach::Network)), (TCP, Verdict::Picked)]);
    }

    #[test]
    fn off_and_require_are_obeyed() {
        let all = both();
        let offer = Offer { ours: &all, theirs: &all };
        let off = pick(&[(SHM, Setting::Off)], offer, &need(Reach::Host)).expect("tcp works");
        assert_eq!(off.verdicts[0], (SHM, Verdict::Off));
        let required = pick(&[(TCP, Setting::Require)], offer, &need(Reach::Host)).expect("tcp works");
        assert_eq!(required.caps.kind, TCP);
        assert_eq!(required.verdicts[0], (SHM, Verdict::NotRequired));
    }

    #[test]
    fn a_required_transport_that_is_missing_is_an_error() {
        let ours = both();
        let offer = Offer { ours: &ours, theirs: &ours[..1] };
        let missing = pick(&[(SHM, Setting::Require)], offer, &need(Reach::Host));
        assert_eq!(missing, Err(PickError::Required { kind: SHM, verdict: Verdict::NotTheirs }));
        let unknown = pick(&[(TransportKind::Verbs, Setting::Require)], offer, &need(Reach::Host));
        let verdict = Verdict::NotOurs;
        assert_eq!(unknown, Err(PickError::Required { kind: TransportKind::Verbs, verdict }));
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let ours = both();
        let offer = Offer { ours: &ours, theirs: &ours };
        let device = Need { local: MemoryKind::Device, ..need(Reach::Host) };
        let error = pick(&[], offer, &device).expect_err("neither moves device memory");
        assert_eq!(
            error.to_string(),
            "no transport reaches this peer (shm: cannot use Device memory here, tcp: cannot use Device \
             memory here); enable one on both sides"
        );
        let mut write_less = both();
        write_less.iter_mut().for_each(|caps| caps.write = false);
        let offer = Offer { ours: &ours, theirs: &write_less };
        let writes = Need { write: true, ..need(Reach::Host) };
        let error = pick(&[], offer, &writes).expect_err("the peer takes no writes");
        assert!(error.to_string().contains("cannot write to the peer"));
    }
}
