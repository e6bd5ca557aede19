//! The listener of an engine: taken first, announced when everything is ready, drained at the end.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::RunError;
use crate::http::{CONNECTIONS_MAX, Face, Health, Limited, router};

/// Time for replies under way when the engine is told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Takes the address, so that a port in use is said before a model is read. Connections wait in the
/// system's queue until [`serve`].
pub(super) async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), RunError> {
    if !address.ip().is_loopback() {
        return Err(RunError::NotLoopback(address));
    }
    let failed = |source| RunError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Written whole or not at all: whoever waits for it never reads half of it.
pub(super) fn write_ready(path: &Path, address: SocketAddr) -> Result<(), RunError> {
    let partial = path.with_extension("partial");
    let json = serde_json::json!({ "http": address }).to_string();
    let written = fs::write(&partial, json).and_then(|()| fs::rename(&partial, path));
    written.map_err(|source| RunError::ReadyFile { path: path.to_owned(), source })
}

/// Serves until `shutdown`, then takes nothing new and gives replies under way [`DRAIN`] to end.
pub(super) async fn serve(
    listener: TcpListener,
    face: Arc<Face>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RunError> {
    let (told, drained) = oneshot::channel();
    let app = router(Arc::clone(&face));
    let stop = async move {
        shutdown.await;
        face.set_health(Health::Draining);
        tracing::info!("stopping: replies under way have {} seconds", DRAIN.as_secs());
        // Nobody waits when serving has ended by itself.
        told.send(()).ok();
    };
    let server = axum::serve(Limited::new(listener, CONNECTIONS_MAX), app).with_graceful_shutdown(stop);
    let patience = async {
        match drained.await {
            Ok(()) => sleep(DRAIN).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = server => ended.map_err(RunError::Serve),
        () = patience => {
            tracing::warn!("replies under way were broken off");
            Ok(())
        }
    }
}
