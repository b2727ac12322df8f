//! The server: compression for gateways, agents and other languages, and a proxy before a provider.
//!
//! The model works on threads of its own; the async threads only move bytes.

mod access;
mod app;
mod batch;
mod body;
mod calls;
mod compress;
mod health;
mod kong;
#[cfg(feature = "mcp")]
mod mcp;
mod metrics;
mod options;
mod proxy;
mod respond;
mod sound;
mod store;
mod turns;
mod upstream;
mod wish;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;

use crate::engine::Engine;
use crate::error::{Error, Result};
use app::App;

#[cfg(feature = "mcp")]
pub use mcp::serve_mcp;
pub use options::{Cache, Log, Mode, OnFailure, ServeOptions, Size, Time};

/// A running server. Dropping it ends all connections at once.
pub struct Server {
    address: SocketAddr,
    app: Arc<App>,
    stop: watch::Sender<bool>,
    accepting: Option<JoinHandle<()>>,
    runtime: Option<Runtime>,
}

/// Time for threads that still compute after the drain has ended.
const LAST: Duration = Duration::from_secs(1);
/// Async threads: they only move bytes.
const THREADS: usize = 2;

impl Server {
    /// Starts to listen.
    ///
    /// # Errors
    /// [`Error::Input`] for options out of their ranges, [`Error::Io`] for a token file that cannot
    /// be read or an address that cannot be listened on.
    pub fn start(engine: Engine, options: ServeOptions) -> Result<Self> {
        options.check()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(options.queue + 64)
            .thread_name("prefold-serve")
            .enable_all()
            .build()
            .map_err(Error::io("threads of the server"))?;
        let listen = options.listen;
        let app = Arc::new(App::new(engine, options, runtime.handle())?);
        let listener = runtime
            .block_on(TcpListener::bind(listen))
            .map_err(Error::io(listen.to_string()))?;
        let address = listener
            .local_addr()
            .map_err(Error::io(listen.to_string()))?;
        let (stop, stopped) = watch::channel(false);
        let accepting = runtime.spawn(accept(listener, app.clone(), stopped));
        Ok(Server {
            address,
            app,
            stop,
            accepting: Some(accepting),
            runtime: Some(runtime),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no further connections, lets requests in progress finish, and ends; whether all did so
    /// within [`ServeOptions::drain`].
    pub fn stop(mut self) -> bool {
        self.app.draining.store(true, Ordering::Relaxed);
        self.stop.send_replace(true);
        let (Some(runtime), Some(accepting)) = (self.runtime.take(), self.accepting.take()) else {
            return true;
        };
        let drain = self.app.options.drain;
        let finished = runtime.block_on(async { tokio::time::timeout(drain, accepting).await });
        runtime.shutdown_timeout(LAST);
        finished.is_ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// All paths.
fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(health::page).post(kong::json_rpc))
        .route("/v1/compress", post(compress::compress))
        .route("/v1/retrieve", post(compress::retrieve_by_body))
        .route("/v1/retrieve/{hash}", get(compress::retrieve))
        .route("/v1/compress_prompt", post(calls::compress_prompt))
        .route("/v1/rank", post(calls::rank))
        .route("/v1/score", post(calls::score))
        .route("/v1/preview", post(calls::preview))
        .route("/llm/v1/compressPrompt", post(kong::compress))
        .route("/status", get(kong::status))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/health", get(health::health))
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(health::openapi))
        .fallback(proxy::forward)
        .layer(CatchPanicLayer::new())
        .layer(from_fn_with_state(app.clone(), access::guard))
        .layer(RequestBodyTimeoutLayer::new(app.options.idle))
        .with_state(app)
}

/// Takes connections until the server stops, then waits for those that are open.
async fn accept(listener: TcpListener, app: Arc<App>, mut stopped: watch::Receiver<bool>) {
    /// After an error that concerns the process, as too many open files.
    const PAUSE: Duration = Duration::from_millis(50);
    let router = router(app.clone());
    let places = Arc::new(Semaphore::new(app.options.connections));
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            _ = stopped.changed() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Small chunks of an answer must not wait for each other.
        let _ = stream.set_nodelay(true);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(app.options.idle)
            .max_buf_size(app.options.max_head);
        let started = Arc::new(AtomicBool::new(false));
        let service = {
            let (router, started) = (TowerToHyperService::new(router.clone()), started.clone());
            service_fn(move |request| {
                started.store(true, Ordering::Relaxed);
                router.call(request)
            })
        };
        let connection = http
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let app = app.clone();
        let mut stopped = stopped.clone();
        tokio::spawn(async move {
            app.metrics.connections.inc();
            let mut connection = std::pin::pin!(connection);
            // What a client does wrong ends its connection only.
            tokio::select! {
                _ = connection.as_mut() => {}
                _ = stopped.changed() => {
                    // It ends after the request in progress; hyper waits for a first one without an
                    // end.
                    if started.load(Ordering::Relaxed) {
                        connection.as_mut().graceful_shutdown();
                        let _ = connection.await;
                    }
                }
            }
            app.metrics.connections.dec();
            drop(place);
        });
    }
    drop(listener);
    let all = u32::try_from(app.options.connections).unwrap_or(u32::MAX);
    let _ = places.acquire_many(all).await;
}
