//! The reads that end at a separator: `readuntil`, `readline` and the steps of `async for`.
//!
//! The arguments are as those of the other reads. The ticket of a search is where it goes on, and once a
//! tuple of separators was sorted, the sorted list has taken its place.

use pyo3::exceptions::{PyStopAsyncIteration, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyList, PyTuple};
use tideloop_core::inbox::{Scan, scan};
use tideloop_core::waiters::Ticket;

use super::reading::{WANTED, core, failure, incomplete, waiting};
use super::{ReaderCore, is_diverted};
use crate::ffi::buffer::Bytes;
use crate::ffi::call;
use crate::ffi::function::Coroutine;
use crate::ffi::operation::{AtOnce, Frame, Input, Step};
use crate::ffi::shadows::Within;

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

    fn inside<'py>(reader: &Bound<'py, PyAny>, _: &Frame<'_, 'py>) -> PyResult<Vec<Within<'py>>> {
        Ok(vec![waiting(reader)])
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

    fn inside<'py>(reader: &Bound<'py, PyAny>, _: &Frame<'_, 'py>) -> PyResult<Vec<Within<'py>>> {
        let inner = Within::new("asyncio.streams", "StreamReader.readuntil", reader);
        Ok(vec![inner, waiting(reader)])
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

    fn inside<'py>(
        reader: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Vec<Within<'py>>> {
        let mut within = vec![Within::new(
            "asyncio.streams",
            "StreamReader.readline",
            reader,
        )];
        within.extend(ReadLine::inside(reader, frame)?);
        Ok(within)
    }
}
