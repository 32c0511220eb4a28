//! What comes out of a priority queue first, told by the items' own `<`.
//!
//! A comparison may run any code, that of this queue too. So it is made between two looks at the heap, of
//! references that are ours; see [`tideloop_core::heap`] for why that is enough. Each step makes the one
//! comparison that `heapq` makes there, and equals come out in the order in which they came in.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::queue::{Items, QueueCore};
use tideloop_core::heap::{Rise, StableHeap};

#[cold]
fn changed() -> PyErr {
    PyRuntimeError::new_err("the priority queue changed while its items were compared")
}

type Heap = StableHeap<Py<PyAny>>;

/// Looks at the heap; fails if the items are elsewhere by now.
fn look<R>(queue: &QueueCore, py: Python<'_>, f: impl FnOnce(&mut Heap) -> R) -> PyResult<R> {
    queue
        .state
        .with(py, |state| match &mut state.items {
            Items::Ranked(heap) => Some(f(heap)),
            Items::Native(_) | Items::Shown(_) => None,
        })
        .ok_or_else(changed)
}

/// Adds an item: behind its equals, or before them if it was taken out and comes back.
///
/// Raises what comparing raises; as with `heapq`, the item is in the heap then, as far up as it got. Raises
/// RuntimeError if comparing changed the queue; then it is not.
pub fn push(queue: &QueueCore, item: &Bound<'_, PyAny>, returned: bool) -> PyResult<()> {
    let py = item.py();
    let mut rise = look(queue, py, |heap| heap.rise(returned))?;
    let compared = climb(queue, item, &mut rise);
    let stored = look(queue, py, |heap| heap.insert(rise, item.clone().unbind()))?;
    if let Err(item) = stored {
        drop(item.into_bound(py));
        return Err(changed());
    }
    compared
}

fn climb(queue: &QueueCore, item: &Bound<'_, PyAny>, rise: &mut Rise) -> PyResult<()> {
    let py = item.py();
    while let Some(place) = rise.parent() {
        let parent = look(queue, py, |heap| {
            heap.get(place).map(|parent| parent.bind(py).clone())
        })?;
        let parent = parent.ok_or_else(changed)?;
        let less = if rise.asks_the_parent() {
            parent.lt(item)?
        } else {
            item.lt(parent)?
        };
        if !rise.answer(less) {
            break;
        }
    }
    Ok(())
}

/// Takes the first item out.
///
/// Raises as [`push`]; nothing is taken out then. (`heapq` would lose the item.)
pub fn pop<'py>(queue: &QueueCore, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let Some(mut sink) = look(queue, py, |heap| heap.sink())? else {
        return Ok(None);
    };
    while let Some((item, other)) = look(queue, py, |heap| {
        let (item, other) = sink.question(heap)?;
        let clone = |place| heap.get(place).map(|item| item.bind(py).clone());
        clone(item).zip(clone(other))
    })? {
        if !sink.answer(item.lt(other)?) {
            break;
        }
    }
    let item = look(queue, py, |heap| heap.remove(&sink))?;
    item.map(|item| Some(item.into_bound(py)))
        .map_err(|_| changed())
}
