//! The server: it answers who looks at this process from outside, also while every loop in it is blocked.
//!
//! **Two threads.** The *listener* ([`listener`]) has the sockets and writes the answers; what it tells of loops and of
//! blocks it reads from what these publish. **It never takes the GIL**, and touches no Python object: so it answers
//! while C code holds the GIL, and whoever holds the GIL may wait for its end. The *collector* ([`collector`]) calls
//! Python for what only Python knows, the tasks and the toolkit's gauges; nobody waits for it but who asked, and that one for a
//! quarter of a second, after which it is told what was known last, and how old that is.
//!
//! **Who may ask**: [`tideloop_core::http`]. Nothing listens unless it was asked for.
//!
//! **Slow clients.** A request has a short time to come, an answer to be taken, and there are so many connections at each
//! door; when all are taken, the one that has kept us waiting longest gives way. The doors do not take from
//! each other.
//!
//! **Forks.** Both threads are stopped before one, with their sockets put aside, and started again in the parent. The
//! child closes its copies and serves nobody: who asks is asking for the parent.
//!
//! **The end.** Both are stopped before the interpreter ends. A collector that does not come back from Python within a
//! second is left behind: it waits for something that the end may be holding, and is not let into Python any more.
//!
//! **Locks.** `SERVING` and the collector's state, each held for a few moves of memory, never across a call of Python or
//! a wait for a thread.

mod collector;
mod connection;
mod documents;
mod exposition;
mod listener;
mod routes;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tideloop_sys::clock;
use tideloop_sys::selector::{self, Backend, Selector};
use tideloop_sys::serving::Listening;
use tideloop_sys::socket::RawSource;

use crate::errors::os_error;
use listener::Listener;

/// What the threads share.
struct Shared {
    selector: Arc<dyn Selector>,
    /// The listener is to put itself aside.
    pausing: AtomicBool,
    python: String,
    tideloop: String,
    program: String,
    started: u64,
    /// The secret of the port, and what the page's own script is known by.
    token: String,
    nonce: String,
    /// How long a client may keep us waiting, in nanoseconds.
    patience: u64,
    web: Mutex<Web>,
}

/// The port for browsers.
#[derive(Default)]
struct Web {
    port: Option<u16>,
    /// Opened, and not yet seen by the listener.
    opened: Option<Listening>,
}

impl Shared {
    /// The port, which is opened unless it is.
    fn open_web(&self, port: u16) -> std::io::Result<u16> {
        let mut web = locked(&self.web);
        if let Some(port) = web.port {
            return Ok(port);
        }
        let (opened, port) = Listening::on_loopback(port)?;
        web.opened = Some(opened);
        web.port = Some(port);
        self.selector.wake()?;
        Ok(port)
    }

    /// What a browser is told to open.
    fn url(&self, port: u16) -> String {
        format!("http://127.0.0.1:{port}/?token={}", self.token)
    }
}

struct Serving {
    shared: Arc<Shared>,
    /// The listener runs, or else is put aside.
    thread: Option<JoinHandle<Listener>>,
    aside: Option<Listener>,
}

static SERVING: Mutex<Option<Serving>> = Mutex::new(None);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Serving {
    fn resume(&mut self) -> std::io::Result<()> {
        let Some(listener) = self.aside.take() else {
            return Ok(());
        };
        self.shared.pausing.store(false, Ordering::Relaxed);
        collector::start(&self.shared.selector)?;
        let builder = std::thread::Builder::new().name("tideloop-serve".to_owned());
        self.thread = Some(builder.spawn(move || listener.run())?);
        Ok(())
    }
}

/// Waits for both threads with the listener put aside.
fn pause(py: Python<'_>) {
    let thread = locked(&SERVING).as_mut().and_then(|serving| {
        serving.shared.pausing.store(true, Ordering::Relaxed);
        // It would wake by itself, later.
        serving.shared.selector.wake().ok();
        serving.thread.take()
    });
    // The listener never waits for the GIL, the collector may.
    let aside = thread.and_then(|thread| thread.join().ok());
    py.detach(collector::stop);
    if let Some(serving) = locked(&SERVING).as_mut() {
        serving.aside = aside.or(serving.aside.take());
    }
}

/// Starts the server, on a copy of a listening UNIX socket if one is given. `identity`: the versions of Python and of
/// tideloop, and the program's name; `patience`: seconds that a client may keep it waiting.
///
/// Raises RuntimeError if it runs, and OSError for what the system refuses.
#[pyfunction]
pub fn serve_start(
    identity: (String, String, String),
    token: String,
    nonce: String,
    patience: f64,
    socket: Option<RawSource>,
) -> PyResult<()> {
    let mut serving = locked(&SERVING);
    if serving.is_some() {
        return Err(PyRuntimeError::new_err("tideloop serves already"));
    }
    let (python, tideloop, program) = identity;
    let local = socket
        .map(Listening::copied)
        .transpose()
        .map_err(os_error)?;
    let selector = Arc::from(selector::new(Backend::Default).map_err(os_error)?);
    let shared = Arc::new(Shared {
        selector,
        pausing: AtomicBool::new(false),
        python,
        tideloop,
        program,
        started: clock::monotonic_ns(),
        token,
        nonce,
        patience: (patience * 1e9) as u64,
        web: Mutex::default(),
    });
    let listener = Listener::new(Arc::clone(&shared), local).map_err(os_error)?;
    let mut new = Serving {
        shared,
        thread: None,
        aside: Some(listener),
    };
    new.resume().map_err(os_error)?;
    *serving = Some(new);
    Ok(())
}

/// Opens a port of 127.0.0.1 for browsers, 0: any, unless one is open; returns the address of the page.
///
/// Raises RuntimeError if the server does not run, and OSError if the port is taken.
#[pyfunction]
pub fn serve_web(port: u16) -> PyResult<String> {
    let shared = locked(&SERVING)
        .as_ref()
        .map(|serving| Arc::clone(&serving.shared));
    let shared = shared.ok_or_else(|| PyRuntimeError::new_err("tideloop does not serve"))?;
    let port = shared.open_web(port).map_err(os_error)?;
    Ok(shared.url(port))
}

/// The address of the page; None: no port is open.
#[pyfunction]
pub fn serve_url() -> Option<String> {
    let serving = locked(&SERVING);
    let shared = &serving.as_ref()?.shared;
    let port = locked(&shared.web).port?;
    Some(shared.url(port))
}

/// Stops the server, if it runs.
#[pyfunction]
pub fn serve_stop(py: Python<'_>) {
    pause(py);
    let serving = locked(&SERVING).take();
    drop(serving);
}

/// Before a fork: no thread of ours runs.
#[pyfunction]
pub fn serve_pause(py: Python<'_>) {
    pause(py);
}

/// In the parent, after a fork. Raises OSError if there may be no more threads.
#[pyfunction]
pub fn serve_resume() -> PyResult<()> {
    match locked(&SERVING).as_mut() {
        Some(serving) => serving.resume().map_err(os_error),
        None => Ok(()),
    }
}

/// In a forked child: its copies of the sockets are closed.
#[pyfunction]
pub fn serve_forked() {
    let serving = locked(&SERVING).take();
    drop(serving);
    collector::forked();
}
