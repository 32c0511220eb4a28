//! The reads that count bytes, `read` and `readexactly`, and what all reads share.
//!
//! The arguments of an operation are the reader and how much it wants; the third one is the reader's core,
//! found by the first step. While a read to the end goes on, its second argument is the list of what it has
//! got so far.

use pyo3::exceptions::{PyAssertionError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyList, PyType};
use tideloop_core::waiters::Ticket;

use super::{Buffer, ReaderCore, cut, is_diverted, known_core, whole};
use crate::ffi::call;
use crate::ffi::function::Coroutine;
use crate::ffi::operation::{AtOnce, Frame, Input, Step};
use crate::ffi::park;
use crate::ffi::shadows::Within;

pub(super) const WANTED: usize = 1;
const CORE: usize = 2;

/// The core of the reader that an operation is for.
#[inline]
pub(super) fn core<'py>(
    reader: &Bound<'py, PyAny>,
    frame: &Frame<'_, 'py>,
) -> PyResult<Bound<'py, ReaderCore>> {
    if let Some(core) = frame.argument(CORE) {
        return Ok(core.cast_into::<ReaderCore>()?);
    }
    let core = known_core(reader)?;
    drop(frame.replace(CORE, Some(core.clone().into_any())));
    Ok(core)
}

impl ReaderCore {
    /// Takes what `choose` finds in unread bytes, if nothing else has to be done for that.
    #[inline]
    pub(super) fn take_at_once<'py>(
        &self,
        py: Python<'py>,
        choose: impl FnOnce(&[u8], usize) -> Option<usize>,
    ) -> AtOnce<'py> {
        let taken = self.state.with(py, |state| {
            let Buffer::Native(inbox) = &mut state.buffer else {
                return None;
            };
            if state.paused || state.exception.is_some() || inbox.is_empty() {
                return None;
            }
            let count = choose(inbox.as_slice(), state.limit)?;
            Some(cut(py, inbox, count))
        });
        taken.map_or(AtOnce::No, |taken| AtOnce::Return(whole(py, taken)))
    }

    /// Whether unread bytes are here, and not in a bytearray that a program has got hold of.
    #[inline]
    fn has_bytes(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| match &state.buffer {
            Buffer::Native(inbox) => !inbox.is_empty(),
            Buffer::Shown(_) => false,
        })
    }

    /// Begins to wait, if nothing is there and nothing else has to be looked at or done for that: what a read of a
    /// server's finds.
    #[inline]
    fn wait_at_once<'py>(&self, py: Python<'py>) -> Option<PyResult<Step<'py>>> {
        let event_loop = self.state.with(py, |state| {
            let Buffer::Native(inbox) = &state.buffer else {
                return None;
            };
            let busy = state.eof || state.paused || state.exception.is_some();
            if busy || state.waiter.is_some() || !inbox.is_empty() {
                return None;
            }
            Some(state.event_loop.as_ref()?.bind(py).clone())
        })?;
        let future = match park::new_future(&event_loop) {
            Ok(future) => future,
            Err(error) => return Some(Err(error)),
        };
        self.put(py, Some(future.clone()), |state| &mut state.waiter);
        Some(Ok(Step::Wait(future)))
    }

    /// Begins to wait for more, on behalf of a method.
    pub(super) fn wait<'py>(&self, py: Python<'py>, method: &str) -> PyResult<Step<'py>> {
        let (waited_for, eof, paused, event_loop) = self.state.with(py, |state| {
            let event_loop = state.event_loop.as_ref();
            (
                state.waiter.is_some(),
                state.eof,
                state.paused,
                event_loop.map(|event_loop| event_loop.bind(py).clone()),
            )
        });
        if waited_for {
            return Err(PyRuntimeError::new_err(format!(
                "{method}() called while another coroutine is already waiting for incoming data"
            )));
        }
        if eof {
            return Err(PyAssertionError::new_err("_wait_for_data after EOF"));
        }
        // A paused transport would never bring what is waited for.
        if paused {
            self.resume(py)?;
        }
        let event_loop = event_loop
            .ok_or_else(|| PyRuntimeError::new_err("the stream reader has no event loop"))?;
        let future = park::new_future(&event_loop)?;
        self.put(py, Some(future.clone()), |state| &mut state.waiter);
        Ok(Step::Wait(future))
    }

    /// Ends a wait: nobody is to be woken any more.
    #[inline]
    pub(super) fn waited(&self, frame: &Frame<'_, '_>) -> PyResult<()> {
        let py = frame.py();
        let future = frame.awaited()?;
        let waiter = self.state.with(py, |state| {
            let ours = state
                .waiter
                .as_ref()
                .is_some_and(|waiter| waiter.is(&future));
            if ours { state.waiter.take() } else { None }
        });
        drop(waiter.map(|waiter| waiter.into_bound(py)));
        Ok(())
    }

    pub(super) fn ended(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| state.eof)
    }

    /// Takes the first bytes and lets the transport go on.
    #[inline]
    pub(super) fn consume<'py>(
        &self,
        py: Python<'py>,
        count: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let taken = self.take(py, count)?;
        self.maybe_resume(py)?;
        Ok(taken)
    }
}

/// A number that is an int, as almost all are.
#[inline]
fn plain_count(wanted: &Bound<'_, PyAny>) -> Option<i64> {
    match wanted.is_exact_instance_of::<PyInt>() {
        true => wanted.extract().ok(),
        false => None,
    }
}

/// A number of bytes as programs give it, or negative.
#[inline]
fn count_of(wanted: &Bound<'_, PyAny>) -> PyResult<i64> {
    if let Some(count) = plain_count(wanted) {
        return Ok(count);
    }
    // Anything else is compared first, as asyncio does, so that the same is refused.
    if wanted.lt(0)? {
        return Ok(-1);
    }
    match wanted.call_method0(intern!(wanted.py(), "__index__")) {
        Ok(index) => Ok(index.extract().unwrap_or(i64::MAX)),
        Err(_) => Err(PyTypeError::new_err(
            "slice indices must be integers or None or have an __index__ method",
        )),
    }
}

fn empty(py: Python<'_>) -> Bound<'_, PyAny> {
    PyBytes::new(py, b"").into_any()
}

/// asyncio's exception of a name.
#[cold]
pub(super) fn failure(
    py: Python<'_>,
    name: &str,
    arguments: impl pyo3::PyErrArguments + 'static,
) -> PyErr {
    let class = py
        .import(intern!(py, "asyncio.exceptions"))
        .and_then(|exceptions| exceptions.getattr(name))
        .and_then(|class| Ok(class.cast_into::<PyType>()?));
    match class {
        Ok(class) => PyErr::from_type(class, arguments),
        Err(error) => error,
    }
}

#[cold]
pub(super) fn incomplete<'py>(
    partial: &Bound<'py, PyAny>,
    expected: Option<&Bound<'py, PyAny>>,
) -> PyErr {
    let py = partial.py();
    let expected = expected.map_or_else(|| py.None(), |expected| expected.clone().unbind());
    failure(
        py,
        "IncompleteReadError",
        (partial.clone().unbind(), expected),
    )
}

/// In which every method of a reader waits.
pub(super) fn waiting<'py>(reader: &Bound<'py, PyAny>) -> Within<'py> {
    Within::new("asyncio.streams", "StreamReader._wait_for_data", reader)
}

/// `StreamReader.read(n=-1)`.
pub struct Read;

impl Coroutine for Read {
    type Receiver = PyAny;

    fn diverted(reader: &Bound<'_, PyAny>) -> bool {
        is_diverted(reader)
    }

    #[inline]
    fn at_once<'py>(reader: &Bound<'py, PyAny>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        let Ok(core) = core(reader, frame) else {
            return AtOnce::No;
        };
        if !core.get().has_bytes(frame.py()) {
            return AtOnce::No;
        }
        match frame.argument(WANTED).as_ref().and_then(plain_count) {
            Some(count @ 1..) => core
                .get()
                .take_at_once(frame.py(), |_, _| Some(count as usize)),
            _ => AtOnce::No,
        }
    }

    fn advance<'py>(
        reader: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        let core = core(reader, frame)?;
        let core = core.get();
        let wanted = frame.argument(WANTED);
        let blocks = wanted
            .as_ref()
            .and_then(|wanted| wanted.cast::<PyList>().ok());
        match input {
            Input::Thrown(error) => {
                core.waited(frame)?;
                return Err(error);
            }
            Input::Resumed => {
                core.waited(frame)?;
                if let Some(blocks) = blocks {
                    return read_on(core, frame, blocks, true);
                }
                // Known since it began to wait, or else no ticket, which is all ones.
                let count = match frame.ticket().to_u64() {
                    u64::MAX => wanted.as_ref().map_or(Ok(-1), count_of)?.max(0) as usize,
                    count => count as usize,
                };
                if let AtOnce::Return(taken) = core.take_at_once(py, |_, _| Some(count)) {
                    return Ok(Step::Return(taken));
                }
                return Ok(Step::Return(core.consume(py, count)?));
            }
            Input::Start => {}
        }
        if let Some(count @ 1..) = wanted.as_ref().and_then(plain_count)
            && let Some(waits) = core.wait_at_once(py)
        {
            frame.set_ticket(Ticket::from_u64(count as u64));
            return waits;
        }
        core.check(py)?;
        let count = wanted.as_ref().map_or(Ok(-1), count_of)?;
        if count == 0 {
            return Ok(Step::Return(empty(py)));
        }
        if count < 0 {
            let blocks = PyList::empty(py);
            drop(frame.replace(WANTED, Some(blocks.clone().into_any())));
            return read_on(core, frame, &blocks, false);
        }
        if core.len(py)? == 0 && !core.ended(py) {
            return core.wait(py, "read");
        }
        Ok(Step::Return(core.consume(py, count as usize)?))
    }

    fn inside<'py>(
        reader: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Vec<Within<'py>>> {
        let whole = frame.argument(WANTED);
        let whole = whole.is_some_and(|wanted| wanted.is_instance_of::<PyList>());
        let mut within = vec![waiting(reader)];
        if whole {
            within.insert(
                0,
                Within::new("asyncio.streams", "StreamReader.read", reader),
            );
        }
        Ok(within)
    }
}

/// Reads block by block until there is nothing any more. `waited`: for the block that comes now.
fn read_on<'py>(
    core: &ReaderCore,
    frame: &Frame<'_, 'py>,
    blocks: &Bound<'py, PyList>,
    mut waited: bool,
) -> PyResult<Step<'py>> {
    let py = frame.py();
    loop {
        if !waited {
            core.check(py)?;
            if core.len(py)? == 0 && !core.ended(py) {
                return core.wait(py, "read");
            }
        }
        waited = false;
        let block = core.consume(py, core.limit(py))?;
        if !block.is_truthy()? {
            let joined = call::method1(&empty(py), intern!(py, "join"), blocks.as_any())?;
            return Ok(Step::Return(joined));
        }
        blocks.append(block)?;
    }
}

/// `StreamReader.readexactly(n)`.
pub struct ReadExactly;

impl Coroutine for ReadExactly {
    type Receiver = PyAny;

    fn diverted(reader: &Bound<'_, PyAny>) -> bool {
        is_diverted(reader)
    }

    #[inline]
    fn at_once<'py>(reader: &Bound<'py, PyAny>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        let (Some(wanted), Ok(core)) = (frame.argument(WANTED), core(reader, frame)) else {
            return AtOnce::No;
        };
        match wanted.cast_exact::<PyInt>().map(|wanted| wanted.extract()) {
            Ok(Ok(count @ 1..)) => core.get().take_at_once(frame.py(), |bytes, _| {
                (bytes.len() >= count).then_some(count)
            }),
            _ => AtOnce::No,
        }
    }

    fn advance<'py>(
        reader: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        let core = core(reader, frame)?;
        let core = core.get();
        let wanted = frame
            .argument(WANTED)
            .ok_or_else(|| PyValueError::new_err("a bug in tideloop: no number of bytes"))?;
        let count = match input {
            Input::Thrown(error) => {
                core.waited(frame)?;
                return Err(error);
            }
            Input::Resumed => {
                core.waited(frame)?;
                count_of(&wanted)?
            }
            Input::Start => {
                let count = count_of(&wanted)?;
                if count < 0 {
                    return Err(PyValueError::new_err(
                        "readexactly size can not be less than zero",
                    ));
                }
                core.check(py)?;
                if count == 0 {
                    return Ok(Step::Return(empty(py)));
                }
                count
            }
        };
        let count = count as usize;
        if core.len(py)? >= count {
            return Ok(Step::Return(core.consume(py, count)?));
        }
        if core.ended(py) {
            let partial = core.take(py, usize::MAX)?;
            return Err(incomplete(&partial, Some(&wanted)));
        }
        core.wait(py, "readexactly")
    }

    fn inside<'py>(reader: &Bound<'py, PyAny>, _: &Frame<'_, 'py>) -> PyResult<Vec<Within<'py>>> {
        Ok(vec![waiting(reader)])
    }
}
