//! Queue, PriorityQueue and LifoQueue.
//!
//! Items live in a native container until a program looks at `_queue`: then they move to the list or
//! deque that asyncio's class would have, and stay there. A priority queue has a heap that keeps equals in
//! order ([`ranked`](super::ranked)) until then, and a list that `heapq` keeps from then on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use pyo3::exceptions::{PyAttributeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PyString, PyType};
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::heap::StableHeap;

use super::event::{self, EventCore, truth};
use super::ranked;
use super::wait_list::{BoundLoop, WaitList, new_deque};
use crate::deadline;
use crate::ffi::call;
use crate::ffi::cell::LoopCell;
use crate::ffi::function::{Coroutine, Method, Rest};
use crate::ffi::operation::{AtOnce, Frame, Input, Step};
use crate::ffi::park;
use crate::ffi::roll;
use crate::ffi::shadows::Within;

/// In which order items come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Fifo,
    Lifo,
    Priority,
}

pub(super) enum Items {
    Native(VecDeque<Py<PyAny>>),
    /// By priority.
    Ranked(StableHeap<Py<PyAny>>),
    /// In a container that programs can see.
    Shown(Py<PyAny>),
}

pub(super) struct State {
    pub(super) order: Order,
    pub(super) items: Items,
    maxsize: Py<PyAny>,
    /// `_finished`, once somebody has asked for it: set while nothing is unfinished.
    finished: Option<Py<PyAny>>,
}

/// The native half of `tideloop.Queue` and its two kinds.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct QueueCore {
    pub(super) state: LoopCell<State>,
    /// `maxsize` as a number of items; 0 for no limit.
    limit: AtomicI64,
    unfinished: AtomicI64,
    /// Items that were ever put.
    pub(super) puts: AtomicI64,
    shut_down: AtomicBool,
    diverted: AtomicBool,
    pub(super) getters: WaitList,
    pub(super) putters: WaitList,
    pub(super) bound: BoundLoop,
    place: roll::Place,
}

/// One look at the items.
enum Look<'py> {
    Nothing,
    Ranked,
    Item(Bound<'py, PyAny>),
    Shown(Bound<'py, PyAny>, Order),
}

/// Where an item goes.
enum Place<'py> {
    Stored,
    Ranked,
    Shown(Bound<'py, PyAny>, Order),
}

impl QueueCore {
    pub(super) fn is_diverted(&self) -> bool {
        self.diverted.load(Ordering::Relaxed)
    }

    /// Counts an item that was put.
    #[inline(always)]
    fn one_more(&self) {
        // The GIL orders these; an atomic read-modify-write would cost as much as all the rest.
        let count = self.unfinished.load(Ordering::Relaxed) + 1;
        self.unfinished.store(count, Ordering::Relaxed);
        let puts = self.puts.load(Ordering::Relaxed) + 1;
        self.puts.store(puts, Ordering::Relaxed);
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.shut_down.load(Ordering::Relaxed)
    }

    pub(super) fn size(&self, py: Python<'_>) -> PyResult<usize> {
        let (size, shown) = self.state.with(py, |state| match &state.items {
            Items::Native(items) => (items.len(), None),
            Items::Ranked(items) => (items.len(), None),
            Items::Shown(items) => (0, Some(items.clone_ref(py))),
        });
        match shown {
            None => Ok(size),
            Some(items) => items.into_bound(py).len(),
        }
    }

    #[inline]
    pub(super) fn is_full(&self, py: Python<'_>) -> PyResult<bool> {
        let limit = self.limit.load(Ordering::Relaxed);
        Ok(limit > 0 && self.size(py)? as i64 >= limit)
    }

    /// Takes the next item, if there is one.
    #[inline]
    pub(super) fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let look = self.state.with(py, |state| match &mut state.items {
            Items::Native(items) => {
                let item = match state.order {
                    Order::Fifo => items.pop_front(),
                    Order::Lifo | Order::Priority => items.pop_back(),
                };
                item.map_or(Look::Nothing, |item| Look::Item(item.into_bound(py)))
            }
            Items::Ranked(_) => Look::Ranked,
            Items::Shown(items) => Look::Shown(items.bind(py).clone(), state.order),
        });
        match look {
            Look::Nothing => Ok(None),
            Look::Item(item) => Ok(Some(item)),
            Look::Ranked => ranked::pop(self, py),
            Look::Shown(items, order) => take_shown(&items, order),
        }
    }

    /// Stores an item.
    #[inline]
    fn store(&self, item: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = item.py();
        let shown = self.state.with(py, |state| match &mut state.items {
            Items::Native(items) => {
                items.push_back(item.clone().unbind());
                Place::Stored
            }
            Items::Ranked(_) => Place::Ranked,
            Items::Shown(items) => Place::Shown(items.bind(py).clone(), state.order),
        });
        match shown {
            Place::Stored => Ok(()),
            Place::Ranked => ranked::push(self, item, false),
            Place::Shown(items, Order::Priority) => {
                heap(py)?.push.bind(py).call1((items, item)).map(drop)
            }
            Place::Shown(items, _) => call::method1(&items, intern!(py, "append"), item).map(drop),
        }
    }

    pub(super) fn is_empty(&self, py: Python<'_>) -> PyResult<bool> {
        let (empty, shown) = self.state.with(py, |state| match &state.items {
            Items::Native(items) => (items.is_empty(), None),
            Items::Ranked(items) => (items.is_empty(), None),
            Items::Shown(items) => (false, Some(items.bind(py).clone())),
        });
        match shown {
            None => Ok(empty),
            Some(items) => Ok(!items.is_truthy()?),
        }
    }

    #[inline]
    pub(super) fn put_now(&self, item: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = item.py();
        if self.is_shut_down() {
            return Err(failure(py, intern!(py, "QueueShutDown")));
        }
        if self.is_full(py)? {
            return Err(failure(py, intern!(py, "QueueFull")));
        }
        self.store(item)?;
        self.one_more();
        self.mark(py, false)?;
        self.getters.wake_next(py)
    }

    fn get_now<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if let Some(item) = self.take(py)? {
            self.putters.wake_next(py)?;
            return Ok(item);
        }
        let why = if self.is_shut_down() {
            intern!(py, "QueueShutDown")
        } else {
            intern!(py, "QueueEmpty")
        };
        Err(failure(py, why))
    }

    /// Tells `_finished`, if there is one, whether all work is done.
    #[inline]
    fn mark(&self, py: Python<'_>, finished: bool) -> PyResult<()> {
        let event = self.state.with(py, |state| {
            state.finished.as_ref().map(|event| event.clone_ref(py))
        });
        match event {
            None => Ok(()),
            Some(event) => mark(&event.into_bound(py), finished),
        }
    }

    /// `_finished`, made when first asked for.
    fn finished_event<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let known = self.state.with(py, |state| {
            state.finished.as_ref().map(|event| event.bind(py).clone())
        });
        if let Some(known) = known {
            return Ok(known);
        }
        let event = py
            .import(intern!(py, "tideloop.sync"))?
            .getattr(intern!(py, "Event"))?
            .call0()?;
        if self.unfinished.load(Ordering::Relaxed) <= 0 {
            mark(&event, true)?;
        }
        self.state
            .with(py, |state| state.finished = Some(event.clone().unbind()));
        Ok(event)
    }
}

/// An item from a container that programs can see.
#[cold]
fn take_shown<'py>(items: &Bound<'py, PyAny>, order: Order) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = items.py();
    if !items.is_truthy()? {
        return Ok(None);
    }
    match order {
        Order::Fifo => call::method0(items, intern!(py, "popleft")),
        Order::Lifo => call::method0(items, intern!(py, "pop")),
        Order::Priority => heap(py)?.pop.bind(py).call1((items,)),
    }
    .map(Some)
}

/// Puts an item that was taken out back to where it comes out next.
#[cold]
pub(super) fn return_shown(
    items: &Bound<'_, PyAny>,
    order: Order,
    item: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let py = items.py();
    match order {
        Order::Fifo => call::method1(items, intern!(py, "appendleft"), item),
        Order::Lifo => call::method1(items, intern!(py, "append"), item),
        Order::Priority => heap(py)?.push.bind(py).call1((items, item)),
    }
    .map(drop)
}

/// Sets or clears an event, ours or anybody's.
fn mark(event: &Bound<'_, PyAny>, finished: bool) -> PyResult<()> {
    let py = event.py();
    match event.cast::<EventCore>() {
        Ok(event) if finished => event.get().set(py),
        Ok(event) => {
            event.get().clear();
            Ok(())
        }
        Err(_) if finished => call::method0(event, intern!(py, "set")).map(drop),
        Err(_) => call::method0(event, intern!(py, "clear")).map(drop),
    }
}

/// One of asyncio's queue exceptions, or what stands for it in versions that have not got it.
#[cold]
fn failure(py: Python<'_>, name: &Bound<'_, PyString>) -> PyErr {
    let home = if name == "QueueShutDown" {
        intern!(py, "tideloop.queues")
    } else {
        intern!(py, "asyncio.queues")
    };
    let class = py
        .import(home)
        .and_then(|queues| queues.getattr(name))
        .and_then(|class| Ok(class.cast_into::<PyType>()?));
    match class {
        // Made where it is raised, so that it tells what was being handled there.
        Ok(class) => PyErr::from_type(class, ()),
        Err(error) => error,
    }
}

struct Heap {
    push: Py<PyAny>,
    pop: Py<PyAny>,
}

fn heap(py: Python<'_>) -> PyResult<&'static Heap> {
    static HEAP: PyOnceLock<Heap> = PyOnceLock::new();
    HEAP.get_or_try_init(py, || {
        let heapq = py.import("heapq")?;
        Ok(Heap {
            push: heapq.getattr("heappush")?.unbind(),
            pop: heapq.getattr("heappop")?.unbind(),
        })
    })
}

/// How many items a `maxsize` allows; 0 for any number.
fn limit_of(maxsize: &Bound<'_, PyAny>) -> i64 {
    if let Ok(size) = maxsize.extract::<i64>() {
        return size.max(0);
    }
    match maxsize.extract::<f64>() {
        Ok(size) if size > 0.0 => size.ceil() as i64,
        _ => 0,
    }
}

#[pymethods]
impl QueueCore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        py: Python<'_>,
        _args: &Bound<'_, pyo3::types::PyTuple>,
        _kwargs: Option<&Bound<'_, pyo3::types::PyDict>>,
    ) -> Self {
        Self {
            state: LoopCell::new(State {
                order: Order::Fifo,
                items: Items::Native(VecDeque::new()),
                maxsize: 0i64
                    .into_pyobject(py)
                    .map_or_else(|never| match never {}, |zero| zero.into_any().unbind()),
                finished: None,
            }),
            limit: AtomicI64::new(0),
            unfinished: AtomicI64::new(0),
            puts: AtomicI64::new(0),
            shut_down: AtomicBool::new(false),
            diverted: AtomicBool::new(false),
            getters: WaitList::default(),
            putters: WaitList::default(),
            bound: BoundLoop::default(),
            place: roll::Place::default(),
        }
    }

    /// Begins an empty queue in one of the orders "fifo", "lifo" and "priority".
    fn _begin(slf: &Bound<'_, Self>, maxsize: Bound<'_, PyAny>, order: &str) -> PyResult<()> {
        let py = slf.py();
        let (order, items) = match order {
            "fifo" => (Order::Fifo, Items::Native(VecDeque::new())),
            "lifo" => (Order::Lifo, Items::Native(VecDeque::new())),
            "priority" => (Order::Priority, Items::Ranked(StableHeap::default())),
            other => return Err(PyValueError::new_err(format!("no order {other:?}"))),
        };
        let this = slf.get();
        let none = py.None().into_bound(py);
        this.getters.set(&none);
        this.putters.set(&none);
        this.unfinished.store(0, Ordering::Relaxed);
        this.puts.store(0, Ordering::Relaxed);
        this.shut_down.store(false, Ordering::Relaxed);
        this.limit.store(limit_of(&maxsize), Ordering::Relaxed);
        let new = State {
            order,
            items,
            maxsize: maxsize.unbind(),
            finished: None,
        };
        let old = this.state.with(py, |state| std::mem::replace(state, new));
        drop(old);
        this.place.enlist(slf.as_any());
        Ok(())
    }

    /// From now on the stock methods serve this instance, and this only stores its attributes.
    fn _divert(slf: &Bound<'_, Self>) {
        slf.get().diverted.store(true, Ordering::Relaxed);
        slf.get().place.enlist(slf.as_any());
    }

    /// The items, the number of getters and that of putters, as repr() shows them.
    fn _contents<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, usize, usize)> {
        let items = self.state.with(py, |state| match &state.items {
            Items::Native(items) => Err(items
                .iter()
                .map(|item| item.clone_ref(py))
                .collect::<Vec<_>>()),
            Items::Ranked(items) => Err(items.iter().map(|item| item.clone_ref(py)).collect()),
            Items::Shown(items) => Ok(items.bind(py).clone()),
        });
        let items = match items {
            Err(items) => PyList::new(py, items)?.into_any(),
            Ok(items) => items,
        };
        Ok((items, self.getters.len(py)?, self.putters.len(py)?))
    }

    #[getter(_queue)]
    fn queue<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (order, shown) = self.state.with(py, |state| match &state.items {
            Items::Native(_) | Items::Ranked(_) => (state.order, None),
            Items::Shown(items) => (state.order, Some(items.bind(py).clone())),
        });
        if let Some(shown) = shown {
            return Ok(shown);
        }
        if self.is_diverted() {
            return Err(PyAttributeError::new_err(
                "the queue has no attribute '_queue' yet",
            ));
        }
        let container = match order {
            Order::Fifo => new_deque(py)?,
            Order::Lifo | Order::Priority => PyList::empty(py).into_any(),
        };
        let items = self.state.with(py, |state| {
            let new = Items::Shown(container.clone().unbind());
            match std::mem::replace(&mut state.items, new) {
                Items::Native(items) => items,
                Items::Ranked(mut items) => items.take_all().into(),
                Items::Shown(_) => VecDeque::new(),
            }
        });
        for item in items {
            call::method1(&container, intern!(py, "append"), item.bind(py))?;
        }
        Ok(container)
    }

    #[setter(_queue)]
    fn set_queue(&self, py: Python<'_>, container: Bound<'_, PyAny>) {
        let new = Items::Shown(container.unbind());
        let old = self
            .state
            .with(py, |state| std::mem::replace(&mut state.items, new));
        drop(old);
    }

    #[getter(_maxsize)]
    fn stored_maxsize(&self, py: Python<'_>) -> Py<PyAny> {
        self.state.with(py, |state| state.maxsize.clone_ref(py))
    }

    #[setter(_maxsize)]
    fn set_maxsize(&self, py: Python<'_>, maxsize: Bound<'_, PyAny>) {
        self.limit.store(limit_of(&maxsize), Ordering::Relaxed);
        let old = self.state.with(py, |state| {
            std::mem::replace(&mut state.maxsize, maxsize.unbind())
        });
        drop(old.into_bound(py));
    }

    #[getter(_unfinished_tasks)]
    fn unfinished(&self) -> i64 {
        self.unfinished.load(Ordering::Relaxed)
    }

    #[setter(_unfinished_tasks)]
    fn set_unfinished(&self, count: i64) {
        // How the stock methods count what is put into a diverted queue.
        let more = (count - self.unfinished.load(Ordering::Relaxed)).max(0);
        self.puts.fetch_add(more, Ordering::Relaxed);
        self.unfinished.store(count, Ordering::Relaxed);
    }

    #[getter(_finished)]
    fn finished<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.finished_event(py)
    }

    #[setter(_finished)]
    fn set_finished(&self, py: Python<'_>, event: Bound<'_, PyAny>) {
        let old = self
            .state
            .with(py, |state| state.finished.replace(event.unbind()));
        drop(old.map(|old| old.into_bound(py)));
    }

    #[getter(_is_shutdown)]
    fn shut_down(&self) -> bool {
        self.is_shut_down()
    }

    #[setter(_is_shutdown)]
    fn set_shut_down(&self, shut_down: &Bound<'_, PyAny>) -> PyResult<()> {
        self.shut_down
            .store(shut_down.is_truthy()?, Ordering::Relaxed);
        Ok(())
    }

    #[getter(_getters)]
    fn getters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.getters.show(py)
    }

    #[setter(_getters)]
    fn set_getters(&self, waiters: &Bound<'_, PyAny>) {
        self.getters.set(waiters);
    }

    #[getter(_putters)]
    fn putters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.putters.show(py)
    }

    #[setter(_putters)]
    fn set_putters(&self, waiters: &Bound<'_, PyAny>) {
        self.putters.set(waiters);
    }

    #[getter(_loop)]
    fn bound_loop<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.bound.get(py)
    }

    #[setter(_loop)]
    fn bind_loop(&self, event_loop: &Bound<'_, PyAny>) {
        self.bound.set(event_loop);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let items = self.state.try_with(|state| {
            match &state.items {
                Items::Native(items) => items.iter().try_for_each(|item| visit.call(item))?,
                Items::Ranked(items) => items.iter().try_for_each(|item| visit.call(item))?,
                Items::Shown(items) => visit.call(items)?,
            }
            visit.call(&state.maxsize)?;
            state
                .finished
                .as_ref()
                .map_or(Ok(()), |event| visit.call(event))
        });
        items.unwrap_or(Ok(()))?;
        self.getters.traverse(&visit)?;
        self.putters.traverse(&visit)?;
        self.bound.traverse(&visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, |state| {
            let items = Items::Native(VecDeque::new());
            (
                std::mem::replace(&mut state.items, items),
                state.finished.take(),
            )
        });
        drop(old);
        self.getters.clear(py);
        self.putters.clear(py);
    }
}

/// What a getter or putter does that an exception has reached.
fn leave<'py>(
    waiters: &WaitList,
    frame: &Frame<'_, 'py>,
    could_go_on: impl FnOnce() -> PyResult<bool>,
) -> PyResult<()> {
    let future = frame.awaited()?;
    park::cancel(&future)?;
    waiters.remove(frame.ticket(), &future)?;
    // Woken, but not able to take the call: it goes to the next one.
    // Whom a deadline has ended was not woken.
    if could_go_on()? && !park::is_cancelled(&future)? && park::look(&future) != park::Seen::Failed
    {
        waiters.wake_next(frame.py())?;
    }
    Ok(())
}

/// What a getter or putter does that has to wait.
fn stand<'py>(
    queue: &Bound<'py, QueueCore>,
    waiters: &WaitList,
    frame: &Frame<'_, 'py>,
) -> PyResult<Step<'py>> {
    let future = queue.get().bound.new_future(queue.as_any())?;
    frame.set_ticket(waiters.push(&future)?);
    if let Err(error) = deadline::limit(&future, queue.as_any()) {
        waiters.remove(frame.ticket(), &future)?;
        return Err(error);
    }
    Ok(Step::Wait(future))
}

/// `Queue.get()`.
pub struct Get;

impl Coroutine for Get {
    type Receiver = QueueCore;

    fn diverted(queue: &Bound<'_, QueueCore>) -> bool {
        queue.get().is_diverted()
    }

    #[inline(always)]
    fn at_once<'py>(queue: &Bound<'py, QueueCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        let py = frame.py();
        let state = queue.get();
        if !state.putters.is_vacant(py) {
            return AtOnce::No;
        }
        let item = state
            .state
            .with(py, |state| match (&mut state.items, state.order) {
                (Items::Native(items), Order::Fifo) => items.pop_front(),
                (Items::Native(items), _) => items.pop_back(),
                (Items::Ranked(_) | Items::Shown(_), _) => None,
            });
        item.map_or(AtOnce::No, |item| AtOnce::Return(item.into_bound(py)))
    }

    fn advance<'py>(
        queue: &Bound<'py, QueueCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        match get(queue, frame, input)? {
            Some(step) => Ok(step),
            None => Err(failure(frame.py(), intern!(frame.py(), "QueueShutDown"))),
        }
    }
}

/// The next item; `None` if the queue is empty and shut down.
pub(super) fn get<'py>(
    queue: &Bound<'py, QueueCore>,
    frame: &Frame<'_, 'py>,
    input: Input,
) -> PyResult<Option<Step<'py>>> {
    let py = frame.py();
    let state = queue.get();
    if let Input::Thrown(error) = input {
        leave(&state.getters, frame, || Ok(!state.is_empty(py)?))?;
        return Err(error);
    }
    if let Some(item) = state.take(py)? {
        state.putters.wake_next(py)?;
        return Ok(Some(Step::Return(item)));
    }
    if state.is_shut_down() {
        return Ok(None);
    }
    stand(queue, &state.getters, frame).map(Some)
}

/// `Queue.put(item)`.
pub struct Put;

impl Coroutine for Put {
    type Receiver = QueueCore;

    fn diverted(queue: &Bound<'_, QueueCore>) -> bool {
        queue.get().is_diverted()
    }

    #[inline(always)]
    fn at_once<'py>(queue: &Bound<'py, QueueCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        let py = frame.py();
        let state = queue.get();
        if state.is_shut_down() || !state.getters.is_vacant(py) {
            return AtOnce::No;
        }
        let limit = state.limit.load(Ordering::Relaxed);
        let stored = state.state.with(py, |state| match &mut state.items {
            Items::Native(items)
                if state.finished.is_none() && (limit == 0 || (items.len() as i64) < limit) =>
            {
                let item = frame.replace(1, None);
                items.extend(item.map(Bound::unbind));
                true
            }
            _ => false,
        });
        if !stored {
            return AtOnce::No;
        }
        state.one_more();
        AtOnce::Finish
    }

    fn advance<'py>(
        queue: &Bound<'py, QueueCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        let state = queue.get();
        if let Input::Thrown(error) = input {
            leave(&state.putters, frame, || Ok(!state.is_full(py)?))?;
            return Err(error);
        }
        if state.is_full(py)? {
            if state.is_shut_down() {
                return Err(failure(py, intern!(py, "QueueShutDown")));
            }
            return stand(queue, &state.putters, frame);
        }
        let item = frame
            .argument(1)
            .ok_or_else(|| PyValueError::new_err("a bug in tideloop: nothing to put"))?;
        state.put_now(&item)?;
        Ok(Step::Finish)
    }
}

/// `Queue.join()`.
pub struct Join;

impl Coroutine for Join {
    type Receiver = QueueCore;

    const ASK_ALWAYS: bool = true;

    fn diverted(queue: &Bound<'_, QueueCore>) -> bool {
        // With an event of another class, which only the stock method knows how to wait for.
        let state = queue.get();
        state.is_diverted()
            || state.state.with(queue.py(), |state| {
                state
                    .finished
                    .as_ref()
                    .is_some_and(|event| event.bind(queue.py()).cast::<EventCore>().is_err())
            })
    }

    fn advance<'py>(
        queue: &Bound<'py, QueueCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let state = queue.get();
        if matches!(input, Input::Start) {
            if state.unfinished.load(Ordering::Relaxed) <= 0 {
                return Ok(Step::Finish);
            }
            let event = state.finished_event(frame.py())?;
            drop(frame.replace(2, Some(event)));
        }
        let event = frame
            .argument(2)
            .ok_or_else(|| PyValueError::new_err("a bug in tideloop: nothing to wait for"))?;
        match event::wait(event.cast::<EventCore>()?, frame, input)? {
            Step::Return(_) => Ok(Step::Finish),
            step => Ok(step),
        }
    }

    fn inside<'py>(
        _: &Bound<'py, QueueCore>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Vec<Within<'py>>> {
        let event = frame.argument(2);
        Ok(event
            .iter()
            .map(|event| Within::stock("Event.wait", event))
            .collect())
    }
}

/// `Queue.get_nowait()`.
pub struct GetNowait;

impl Method for GetNowait {
    type Receiver = QueueCore;

    fn diverted(queue: &Bound<'_, QueueCore>) -> bool {
        queue.get().is_diverted()
    }

    fn call<'py>(queue: &Bound<'py, QueueCore>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        queue.get().get_now(queue.py())
    }
}

/// `Queue.put_nowait(item)`.
pub struct PutNowait;

impl Method for PutNowait {
    type Receiver = QueueCore;

    fn diverted(queue: &Bound<'_, QueueCore>) -> bool {
        queue.get().is_diverted()
    }

    fn call<'py>(
        queue: &Bound<'py, QueueCore>,
        rest: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = queue.py();
        let item = rest
            .get(0)
            .ok_or_else(|| PyValueError::new_err("a bug in tideloop: nothing to put"))?;
        queue.get().put_now(&item)?;
        Ok(py.None().into_bound(py))
    }
}

/// `Queue.task_done()`.
pub struct TaskDone;

impl Method for TaskDone {
    type Receiver = QueueCore;

    fn diverted(queue: &Bound<'_, QueueCore>) -> bool {
        queue.get().is_diverted()
    }

    fn call<'py>(queue: &Bound<'py, QueueCore>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        let py = queue.py();
        let state = queue.get();
        let left = state.unfinished.load(Ordering::Relaxed);
        if left <= 0 {
            return Err(PyValueError::new_err("task_done() called too many times"));
        }
        state.unfinished.store(left - 1, Ordering::Relaxed);
        if left == 1 {
            state.mark(py, true)?;
        }
        Ok(py.None().into_bound(py))
    }
}

/// `Queue.qsize()`.
pub struct Size;

impl Method for Size {
    type Receiver = QueueCore;

    fn diverted(queue: &Bound<'_, QueueCore>) -> bool {
        queue.get().is_diverted()
    }

    fn call<'py>(queue: &Bound<'py, QueueCore>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        let size = queue.get().size(queue.py())?;
        Ok(size.into_pyobject(queue.py())?.into_any())
    }
}

/// `Queue.empty()`.
pub struct Empty;

impl Method for Empty {
    type Receiver = QueueCore;

    fn diverted(queue: &Bound<'_, QueueCore>) -> bool {
        queue.get().is_diverted()
    }

    fn call<'py>(queue: &Bound<'py, QueueCore>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(truth(queue.py(), queue.get().is_empty(queue.py())?))
    }
}

/// `Queue.full()`.
pub struct Full;

impl Method for Full {
    type Receiver = QueueCore;

    fn diverted(queue: &Bound<'_, QueueCore>) -> bool {
        queue.get().is_diverted()
    }

    fn call<'py>(queue: &Bound<'py, QueueCore>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(truth(queue.py(), queue.get().is_full(queue.py())?))
    }
}

/// `Queue.shutdown(immediate=False)`.
pub struct Shutdown;

impl Method for Shutdown {
    type Receiver = QueueCore;

    fn diverted(queue: &Bound<'_, QueueCore>) -> bool {
        queue.get().is_diverted()
    }

    fn call<'py>(
        queue: &Bound<'py, QueueCore>,
        rest: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = queue.py();
        let state = queue.get();
        state.shut_down.store(true, Ordering::Relaxed);
        let immediate = match rest.get(0) {
            Some(immediate) => immediate.is_truthy()?,
            None => false,
        };
        if immediate {
            while let Some(item) = state.take(py)? {
                drop(item);
                let left = state.unfinished.load(Ordering::Relaxed);
                if left > 0 {
                    state.unfinished.store(left - 1, Ordering::Relaxed);
                }
            }
            if state.unfinished.load(Ordering::Relaxed) == 0 {
                state.mark(py, true)?;
            }
        }
        // Everybody looks again, and finds the queue shut down.
        state.getters.wake_all(py)?;
        state.putters.wake_all(py)?;
        Ok(py.None().into_bound(py))
    }
}
