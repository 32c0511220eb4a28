//! The reads: `read`, `readexactly`, `readuntil`, `readline` and the steps of `async for`.
//!
//! The arguments of an operation are the reader and how much it wants; the third one is the reader's core,
//! found by the first step. While a read to the end goes on, its second argument is the list of what it has
//! got so far; the ticket of a search is where it goes on.

use pyo3::exceptions::{
    PyAssertionError, PyRuntimeError, PyStopAsyncIteration, PyTypeError, PyValueError,
};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyInt, PyList, PyTuple, PyType};
use tideloop_core::inbox::{Scan, scan};
use tideloop_core::waiters::Ticket;

use super::{Buffer, ReaderCore, cut, is_diverted, known_core, whole};
use crate::ffi::buffer::Bytes;
use crate::ffi::call;
use crate::ffi::function::Coroutine;
use crate::ffi::operation::{AtOnce, Frame, Input, Step};
use crate::ffi::park;

const WANTED: usize = 1;
const CORE: usize = 2;

/// The core of the reader that an operation is for.
#[inline]
fn core<'py>(
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
    fn take_at_once<'py>(
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

    /// Begins to wait for more, on behalf of a method.
    fn wait<'py>(&self, py: Python<'py>, method: &str) -> PyResult<Step<'py>> {
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
    fn waited(&self, frame: &Frame<'_, '_>) -> PyResult<()> {
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

    fn ended(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| state.eof)
    }

    /// Takes the first bytes and lets the transport go on.
    #[inline]
    fn consume<'py>(&self, py: Python<'py>, count: usize) -> PyResult<Bound<'py, PyAny>> {
        let taken = self.take(py, count)?;
        self.maybe_resume(py)?;
        Ok(taken)
    }
}

/// A number of bytes as programs give it, or negative.
#[inline]
fn count_of(wanted: &Bound<'_, PyAny>) -> PyResult<i64> {
    if wanted.is_exact_instance_of::<PyInt>()
        && let Ok(count) = wanted.extract::<i64>()
    {
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
fn failure(py: Python<'_>, name: &str, arguments: impl pyo3::PyErrArguments + 'static) -> PyErr {
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
fn incomplete<'py>(partial: &Bound<'py, PyAny>, expected: Option<&Bound<'py, PyAny>>) -> PyErr {
    let py = partial.py();
    let expected = expected.map_or_else(|| py.None(), |expected| expected.clone().unbind());
    failure(
        py,
        "IncompleteReadError",
        (partial.clone().unbind(), expected),
    )
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
        let (Some(wanted), Ok(core)) = (frame.argument(WANTED), core(reader, frame)) else {
            return AtOnce::No;
        };
        match wanted.cast_exact::<PyInt>().map(|wanted| wanted.extract()) {
            Ok(Ok(count @ 1..)) => core.get().take_at_once(frame.py(), |_, _| Some(count)),
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
                let count = wanted.as_ref().map_or(Ok(-1), count_of)?;
                return Ok(Step::Return(core.consume(py, count.max(0) as usize)?));
            }
            Input::Start => {}
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
}

/// How a search ended that goes on no more.
enum Ended<'py> {
    Message(Bound<'py, PyAny>),
    /// The stream ended before a separator; what there was.
    Partial(Bound<'py, PyAny>),
    /// Asyncio's words, and what they are about.
    TooLong(&'static str, usize),
}

enum Search<'py> {
    Ended(Ended<'py>),
    Waits(Step<'py>),
}

/// Looks for separators, and begins to wait if there is none yet.
fn search<'py>(
    core: &ReaderCore,
    frame: &Frame<'_, 'py>,
    separators: &[&[u8]],
) -> PyResult<Search<'py>> {
    let py = frame.py();
    // No ticket, before the first look, is all ones.
    let offset = frame.ticket().to_u64();
    let offset = if offset == u64::MAX { 0 } else { offset };
    let ended = match core.scan(py, separators, offset as usize)? {
        Scan::Found { end, .. } => Ended::Message(core.consume(py, end)?),
        Scan::FoundTooLate { start } => {
            Ended::TooLong("Separator is found, but chunk is longer than limit", start)
        }
        Scan::TooLong { consumed } => Ended::TooLong(
            "Separator is not found, and chunk exceed the limit",
            consumed,
        ),
        Scan::Missing { .. } if core.ended(py) => Ended::Partial(core.take(py, usize::MAX)?),
        Scan::Missing { offset } => {
            frame.set_ticket(Ticket::from_u64(offset as u64));
            return core.wait(py, "readuntil").map(Search::Waits);
        }
    };
    Ok(Search::Ended(ended))
}

/// Where the first message ends, if it may be taken.
fn first(bytes: &[u8], separators: &[&[u8]], limit: usize) -> Option<usize> {
    match scan(bytes, separators, 0, limit) {
        Scan::Found { end, .. } => Some(end),
        _ => None,
    }
}

/// `StreamReader.readuntil(separator=b"\n")`.
pub struct ReadUntil;

impl Coroutine for ReadUntil {
    type Receiver = PyAny;

    fn diverted(reader: &Bound<'_, PyAny>) -> bool {
        is_diverted(reader)
    }

    #[inline]
    fn at_once<'py>(reader: &Bound<'py, PyAny>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        let Ok(core) = core(reader, frame) else {
            return AtOnce::No;
        };
        let wanted = frame.argument(WANTED);
        let separator: &[u8] = match &wanted {
            None => b"\n",
            Some(wanted) => match wanted.cast_exact::<PyBytes>() {
                Ok(wanted) if !wanted.as_bytes().is_empty() => wanted.as_bytes(),
                _ => return AtOnce::No,
            },
        };
        core.get()
            .take_at_once(frame.py(), |bytes, limit| first(bytes, &[separator], limit))
    }

    fn advance<'py>(
        reader: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let core = core(reader, frame)?;
        let core = core.get();
        let starts = matches!(input, Input::Start);
        match input {
            Input::Thrown(error) => {
                core.waited(frame)?;
                return Err(error);
            }
            Input::Resumed => core.waited(frame)?,
            Input::Start => {}
        }
        let wanted = frame.argument(WANTED);
        let owned = separators(frame, wanted.as_ref(), starts)?;
        if starts {
            core.check(frame.py())?;
        }
        let separators: Vec<&[u8]> = match &owned {
            None => vec![b"\n"],
            Some(owned) => owned.iter().map(Bytes::as_slice).collect(),
        };
        match search(core, frame, &separators)? {
            Search::Waits(step) => Ok(step),
            Search::Ended(Ended::Message(message)) => Ok(Step::Return(message)),
            Search::Ended(Ended::Partial(partial)) => Err(incomplete(&partial, None)),
            Search::Ended(Ended::TooLong(message, consumed)) => Err(failure(
                frame.py(),
                "LimitOverrunError",
                (message, consumed),
            )),
        }
    }
}

/// Whether this Python's readuntil() takes a tuple of separators.
fn takes_tuples(py: Python<'_>) -> bool {
    py.version_info() >= (3, 13)
}

/// The separators that were asked for, the shortest first; None for the one that needs no object.
fn separators<'py>(
    frame: &Frame<'_, 'py>,
    wanted: Option<&Bound<'py, PyAny>>,
    starts: bool,
) -> PyResult<Option<Vec<Bytes>>> {
    let py = frame.py();
    let Some(wanted) = wanted else {
        return Ok(None);
    };
    // Sorted once: the list takes the place of the argument.
    if !starts && let Ok(sorted) = wanted.cast::<PyList>() {
        let bytes = sorted.iter().map(|separator| bytes_of(&separator));
        return bytes.collect::<PyResult<Vec<_>>>().map(Some);
    }
    if takes_tuples(py) && wanted.is_instance_of::<PyTuple>() {
        let sorted = sorted_by_len(wanted)?;
        if sorted.is_empty() {
            return Err(PyValueError::new_err(
                "Separator should contain at least one element",
            ));
        }
        if sorted.get_item(0)?.len()? == 0 {
            return Err(too_short());
        }
        let bytes = sorted.iter().map(|separator| bytes_of(&separator));
        let bytes = bytes.collect::<PyResult<Vec<_>>>()?;
        drop(frame.replace(WANTED, Some(sorted.into_any())));
        return Ok(Some(bytes));
    }
    if wanted.len()? == 0 {
        return Err(too_short());
    }
    Ok(Some(vec![bytes_of(wanted)?]))
}

fn too_short() -> PyErr {
    PyValueError::new_err("Separator should be at least one-byte string")
}

fn sorted_by_len<'py>(separators: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    static PARTS: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();
    let py = separators.py();
    let (sorted, len) = PARTS.get_or_try_init(py, || -> PyResult<_> {
        let builtins = py.import("builtins")?;
        Ok((
            builtins.getattr("sorted")?.unbind(),
            builtins.getattr("len")?.unbind(),
        ))
    })?;
    let keywords = pyo3::types::PyDict::new(py);
    keywords.set_item(intern!(py, "key"), len)?;
    let list = sorted.bind(py).call((separators,), Some(&keywords))?;
    Ok(list.cast_into()?)
}

/// The bytes of a separator; what bytearray.find() raises if it has none.
fn bytes_of(separator: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    Bytes::readable(separator).or_else(|error| {
        let py = separator.py();
        call::discard(py, error);
        let searched = PyByteArray::new(py, &[]);
        call::method1(&searched, intern!(py, "find"), separator)?;
        Err(PyTypeError::new_err("a separator is bytes"))
    })
}

/// `StreamReader.readline()`.
pub struct ReadLine;

impl Coroutine for ReadLine {
    type Receiver = PyAny;

    fn diverted(reader: &Bound<'_, PyAny>) -> bool {
        is_diverted(reader)
    }

    #[inline]
    fn at_once<'py>(reader: &Bound<'py, PyAny>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        match core(reader, frame) {
            Ok(core) => core
                .get()
                .take_at_once(frame.py(), |bytes, limit| first(bytes, &[b"\n"], limit)),
            Err(_) => AtOnce::No,
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
        match input {
            Input::Thrown(error) => {
                core.waited(frame)?;
                return Err(error);
            }
            Input::Resumed => core.waited(frame)?,
            Input::Start => core.check(py)?,
        }
        match search(core, frame, &[b"\n"])? {
            Search::Waits(step) => Ok(step),
            Search::Ended(Ended::Message(line) | Ended::Partial(line)) => Ok(Step::Return(line)),
            Search::Ended(Ended::TooLong(message, consumed)) => {
                Err(line_too_long(core, py, message, consumed)?)
            }
        }
    }
}

/// Drops a line that is too long, or what has come of it, and says so.
#[cold]
fn line_too_long(
    core: &ReaderCore,
    py: Python<'_>,
    message: &'static str,
    consumed: usize,
) -> PyResult<PyErr> {
    let followed = core.scan(py, &[b"\n"], consumed)?;
    let whole = match followed {
        Scan::Found { start, .. } | Scan::FoundTooLate { start } => start == consumed,
        Scan::Missing { .. } | Scan::TooLong { .. } => false,
    };
    core.skip(py, if whole { consumed + 1 } else { usize::MAX })?;
    core.maybe_resume(py)?;
    let error = PyValueError::new_err(message);
    let cause = failure(py, "LimitOverrunError", (message, consumed));
    error
        .value(py)
        .setattr(intern!(py, "__context__"), cause.into_value(py))?;
    Ok(error)
}

/// `StreamReader.__anext__()`.
pub struct Next;

impl Coroutine for Next {
    type Receiver = PyAny;

    // A subclass may have another readline().
    fn diverted(reader: &Bound<'_, PyAny>) -> bool {
        is_diverted(reader)
    }

    #[inline]
    fn at_once<'py>(reader: &Bound<'py, PyAny>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        ReadLine::at_once(reader, frame)
    }

    fn advance<'py>(
        reader: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        match ReadLine::advance(reader, frame, input)? {
            Step::Return(line) if !line.is_truthy()? => Err(PyStopAsyncIteration::new_err(())),
            step => Ok(step),
        }
    }
}
