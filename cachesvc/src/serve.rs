//! The local protocol: clients of this host on a unix socket.
//!
//! One task accepts; each connection is a [`session`]. Requests of a connection are worked on side by side and answered
//! in any order. When it ends, everything that it held is given back.

pub mod challenge;
pub mod registry;
pub mod session;
pub mod split;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::session::Session;
use crate::error::NodeError;
use crate::node::Shared;
use crate::store::message::SessionId;

/// Connections that may be open at once.
pub const SESSIONS_MAX: usize = 1024;

/// Binds the socket, for its owner only. A socket that nobody listens on is replaced.
///
/// # Errors
/// When another process listens there, or the path cannot be used.
pub fn bind(path: &Path) -> Result<UnixListener, NodeError> {
    use std::os::unix::fs::PermissionsExt;

    let failed = |source| NodeError::Socket { path: path.to_owned(), source };
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(NodeError::SocketInUse(path.to_owned()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Serves clients until the task is dropped; then every session ends.
pub async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    let seats = Arc::new(Semaphore::new(SESSIONS_MAX));
    let ids = AtomicU64::new(1);
    let mut sessions = JoinSet::new();
    loop {
        while sessions.try_join_next().is_some() {}
        let Ok(seat) = seats.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a client could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let session = Session::new(SessionId(ids.fetch_add(1, Ordering::Relaxed)), shared.clone());
        sessions.spawn(async move {
            session.run(stream).await;
            drop(seat);
        });
    }
}

/// Removes the socket's name when the node ends.
#[derive(Debug)]
pub struct SocketGuard(pub PathBuf);

impl Drop for SocketGuard {
    fn drop(&mut self) {
        // Nobody can connect through a name that is gone already.
        std::fs::remove_file(&self.0).ok();
    }
}
