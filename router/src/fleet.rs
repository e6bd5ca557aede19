//! The endpoints there are, and whether they can be picked.
//!
//! An endpoint starts out down and comes up with its first good probe. A refused connection takes it down at once,
//! be it a probe's or a request's; an engine that is merely slow to answer is given a few probes, since engines share
//! their processor with the work they do.

mod probe;

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

use http::Uri;
use http::uri::{Authority, Scheme};
use serde_json::Value;
use thiserror::Error;

pub use self::probe::{probe_all, watch};

/// Endpoints of one router.
pub const ENDPOINTS_MAX: usize = 1024;
/// Probes in a row that an engine may leave unanswered before it counts as down.
const SLOW_PROBES_MAX: u32 = 5;

/// An endpoint's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(usize);

/// Whether an endpoint can be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Takes requests.
    Up,
    /// Finishes what it has and takes nothing new.
    Draining,
    /// Not reachable, or not well.
    Down,
}

/// The models that an endpoint serves, as it lists them itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Models(Option<Arc<[Value]>>);

/// What is known about an endpoint.
#[derive(Clone, Debug)]
pub struct EndpointStatus {
    /// Its number.
    pub id: EndpointId,
    /// Host and port: what it is called in headers, metrics and the index.
    pub authority: Arc<str>,
    /// Whether it can be picked.
    pub state: State,
    /// What it serves. Kept while it is down.
    pub models: Models,
}

/// An engine's base URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineUrl(Authority);

/// An engine cannot be used under this URL.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EngineUrlError {
    /// The text is no URL of an engine.
    #[error("{0:?} is no engine URL: write http://HOST:PORT, without a path")]
    Malformed(String),
    /// TLS to engines is not there yet.
    #[error("{0:?}: this router speaks plain HTTP to its engines; write http://HOST:PORT")]
    Tls(String),
}

/// The list of engines cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FleetError {
    /// There are none.
    #[error("no engine is given: add --engine http://HOST:PORT, once per engine")]
    Empty,
    /// One is given twice.
    #[error("the engine {0} is given twice: remove one --engine")]
    Twice(String),
    /// There are too many.
    #[error("{0} engines are given; one router takes {ENDPOINTS_MAX}")]
    TooMany(usize),
}

/// All endpoints. Their number and order never change.
#[derive(Debug)]
pub struct Fleet {
    status: RwLock<Vec<EndpointStatus>>,
}

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Healthy; with the list of models, if it was asked for and answered.
    Good(Option<Models>),
    /// It says that it takes nothing new.
    Draining,
    /// No connection, or an answer that is not healthy.
    Failed,
    /// No answer in time.
    Slow,
}

impl Fleet {
    /// Of these engines, all down until their first good probe.
    ///
    /// # Errors
    /// The list is empty, too long, or has an engine twice.
    pub fn new(engines: &[EngineUrl]) -> Result<Self, FleetError> {
        if engines.is_empty() {
            return Err(FleetError::Empty);
        }
        if engines.len() > ENDPOINTS_MAX {
            return Err(FleetError::TooMany(engines.len()));
        }
        let mut status: Vec<EndpointStatus> = Vec::with_capacity(engines.len());
        for (n, engine) in engines.iter().enumerate() {
            let authority: Arc<str> = engine.authority().into();
            if status.iter().any(|other| other.authority == authority) {
                return Err(FleetError::Twice(authority.to_string()));
            }
            let (state, models) = (State::Down, Models::unknown());
            status.push(EndpointStatus { id: EndpointId(n), authority, state, models });
        }
        Ok(Self { status: RwLock::new(status) })
    }

    /// What is known about every endpoint, by number.
    pub fn snapshot(&self) -> Vec<EndpointStatus> {
        self.read().clone()
    }

    /// What is known about one endpoint.
    pub fn endpoint(&self, id: EndpointId) -> EndpointStatus {
        self.read()[id.0].clone()
    }

    /// A request was refused a connection. The endpoint comes back with its next good probe.
    pub fn eject(&self, id: EndpointId) {
        self.set(id, State::Down);
    }

    /// Takes note of a probe. `slow` counts the unanswered ones in a row.
    fn record(&self, id: EndpointId, probe: Probe, slow: &mut u32) {
        *slow = if probe == Probe::Slow { *slow + 1 } else { 0 };
        match probe {
            Probe::Good(models) => {
                if let Some(models) = models {
                    self.write()[id.0].models = models;
                }
                self.set(id, State::Up);
            }
            Probe::Draining => self.set(id, State::Draining),
            Probe::Slow if *slow < SLOW_PROBES_MAX => {}
            Probe::Failed | Probe::Slow => self.set(id, State::Down),
        }
    }

    fn set(&self, id: EndpointId, state: State) {
        let mut table = self.write();
        let endpoint = &mut table[id.0];
        let before = std::mem::replace(&mut endpoint.state, state);
        let authority = Arc::clone(&endpoint.authority);
        drop(table);
        match (before, state) {
            (State::Up | State::Draining, State::Down) => {
                tracing::warn!(endpoint = %authority, "engine is down")
            }
            (before, state) if before != state => {
                tracing::info!(endpoint = %authority, ?state, "engine changed its state");
            }
            _ => {}
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<EndpointStatus>> {
        self.status.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Vec<EndpointStatus>> {
        self.status.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EndpointStatus {
    /// Whether it serves this model, or may.
    pub fn serves(&self, model: &str) -> bool {
        self.models.0.is_none() || self.models().any(|name| name == model)
    }

    /// The names of its models, as far as known.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.models.list().iter().filter_map(|model| model.get("id")?.as_str())
    }
}

impl Models {
    /// Nothing is known.
    pub fn unknown() -> Self {
        Self(None)
    }

    /// Models of these names.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let models = names.into_iter().map(|name| serde_json::json!({ "id": name, "object": "model" }));
        Self(Some(models.collect()))
    }

    /// From the body of `/v1/models`.
    fn parse(body: &[u8]) -> Option<Self> {
        let mut body: Value = serde_json::from_slice(body).ok()?;
        let Value::Array(list) = body.get_mut("data")?.take() else { return None };
        Some(Self(Some(
            list.into_iter().filter(|model| model.get("id").is_some_and(Value::is_string)).collect(),
        )))
    }

    /// The models as the endpoint describes them; each has a text `id`.
    pub fn list(&self) -> &[Value] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl EndpointId {
    /// The endpoint at this position of the list.
    pub fn new(index: usize) -> Self {
        Self(index)
    }

    /// Its position in the list.
    pub fn index(self) -> usize {
        self.0
    }
}

impl EngineUrl {
    /// Host and port, in lower case.
    pub fn authority(&self) -> String {
        authority_of(self.0.as_str())
    }
}

impl FromStr for EngineUrl {
    type Err = EngineUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || EngineUrlError::Malformed(text.chars().take(200).collect());
        let uri: Uri = text.parse().map_err(|_| malformed())?;
        match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => return Err(EngineUrlError::Tls(text.to_owned())),
            Some(scheme) if *scheme != Scheme::HTTP => return Err(malformed()),
            _ => {}
        }
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        match uri.authority() {
            Some(authority)
                if matches!(path, "" | "/")
                    && authority.port_u16().is_some()
                    && !authority.host().is_empty()
                    && !authority.as_str().contains('@') =>
            {
                Ok(Self(authority.clone()))
            }
            _ => Err(malformed()),
        }
    }
}

impl fmt::Display for EngineUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

/// Host and port of an engine's URL, in lower case: what two spellings of the same engine have in common. A name that
/// is no URL is its own authority.
pub fn authority_of(name: &str) -> String {
    let rest = name.strip_prefix("http://").unwrap_or(name);
    rest.split('/').next().unwrap_or_default().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(text: &str) -> EngineUrl {
        text.parse().expect("a good URL")
    }

    #[test]
    fn urls_are_host_and_port() {
        assert_eq!(engine("http://Node-1:80/").authority(), "node-1:80");
        assert_eq!(engine("127.0.0.1:8000").authority(), "127.0.0.1:8000");
        assert_eq!(engine("http://[::1]:80").authority(), "[::1]:80");
        for bad in
            ["", "http://", "node", "http://node", "ftp://a:1", "http://a:1/v1", "http://u@a:1", "a:99999"]
        {
            assert!(matches!(bad.parse::<EngineUrl>(), Err(EngineUrlError::Malformed(_))), "{bad}");
        }
        assert!(matches!("https://a:1".parse::<EngineUrl>(), Err(EngineUrlError::Tls(_))));
        assert_eq!(authority_of("http://Node-1:80/"), authority_of("node-1:80"));
        assert_eq!(authority_of("engine-7"), "engine-7");
    }

    #[test]
    fn lists_are_checked() {
        assert_eq!(Fleet::new(&[]).expect_err("empty"), FleetError::Empty);
        let twice = [engine("http://a:1"), engine("A:1")];
        assert_eq!(Fleet::new(&twice).expect_err("twice"), FleetError::Twice("a:1".into()));
    }

    #[test]
    fn refusal_takes_down_at_once_and_slowness_only_in_the_end() {
        let fleet = Fleet::new(&[engine("http://a:1")]).expect("one");
        let id = EndpointId(0);
        let state = || fleet.endpoint(id).state;
        let mut slow = 0;
        assert_eq!(state(), State::Down);
        fleet.record(id, Probe::Good(Some(Models::named(["m"]))), &mut slow);
        assert_eq!(state(), State::Up);
        for _ in 1..SLOW_PROBES_MAX {
            fleet.record(id, Probe::Slow, &mut slow);
            assert_eq!(state(), State::Up);
        }
        fleet.record(id, Probe::Slow, &mut slow);
        assert_eq!(state(), State::Down);
        fleet.record(id, Probe::Good(None), &mut slow);
        fleet.record(id, Probe::Slow, &mut slow);
        assert_eq!(state(), State::Up);
        fleet.record(id, Probe::Draining, &mut slow);
        assert_eq!(state(), State::Draining);
        fleet.eject(id);
        assert_eq!(state(), State::Down);
        assert!(fleet.endpoint(id).serves("m") && !fleet.endpoint(id).serves("n"));
    }

    #[test]
    fn model_lists_are_read_with_tolerance() {
        let good = Models::parse(br#"{"object":"list","data":[{"id":"a","owned_by":"x"},{"name":"no id"}]}"#);
        assert_eq!(good.expect("a list").list().len(), 1);
        for bad in ["", "{}", r#"{"data":{}}"#, "[]"] {
            assert_eq!(Models::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
