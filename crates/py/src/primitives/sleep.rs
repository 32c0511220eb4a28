//! `sleep(delay, result=None)`.

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyFloat;

use crate::ffi::call;
use crate::ffi::function::Coroutine;
use crate::ffi::operation::{Frame, Input, Step};
use crate::ffi::park;

/// The coroutine that sleeps.
///
/// Its arguments are delay and result. While it sleeps for a time, its timer is the third one.
pub struct Sleep;

const RESULT: usize = 1;
const TIMER: usize = 2;

impl Coroutine for Sleep {
    type Receiver = PyAny;

    fn advance<'py>(
        delay: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        match input {
            Input::Start => begin(delay, frame),
            Input::Resumed => {
                if let Some(timer) = frame.replace(TIMER, None) {
                    cancel(&timer)?;
                }
                Ok(frame.argument(RESULT).map_or(Step::Finish, Step::Return))
            }
            Input::Thrown(error) => {
                match frame.replace(TIMER, None) {
                    Some(timer) => cancel(&timer)?,
                    // Without a handle: the loop has the future itself; after a bare yield there is none.
                    None => {
                        if let Ok(future) = frame.awaited() {
                            park::stop_waking(&future)?;
                        }
                    }
                }
                Err(error)
            }
        }
    }
}

fn begin<'py>(delay: &Bound<'py, PyAny>, frame: &Frame<'_, 'py>) -> PyResult<Step<'py>> {
    let py = frame.py();
    let float = delay
        .cast_exact::<PyFloat>()
        .ok()
        .map(|delay| delay.value());
    // Comparing a float with an integer takes Python longer than all of this.
    let is_over = match float {
        Some(seconds) => seconds <= 0.0,
        None => delay.le(0)?,
    };
    if is_over {
        return Ok(Step::Yield);
    }
    if delay
        .cast::<PyFloat>()
        .is_ok_and(|delay| delay.value().is_nan())
        && refuses_nan(py)?
    {
        return Err(PyValueError::new_err("Invalid delay: NaN (not a number)"));
    }
    let event_loop = park::running_loop(py)?;
    let future = park::new_future(&event_loop)?;
    if let Ok(seconds) = float.map_or_else(|| delay.extract::<f64>(), Ok)
        && park::wake_later(&event_loop, seconds, &future)
    {
        return Ok(Step::Wait(future));
    }
    let result = frame
        .argument(RESULT)
        .unwrap_or_else(|| py.None().into_bound(py));
    let timer = call::schedule(
        &event_loop,
        intern!(py, "call_later"),
        [delay, wake_up(py)?.bind(py), &future, &result],
    )?;
    drop(frame.replace(TIMER, Some(timer)));
    Ok(Step::Wait(future))
}

fn cancel(timer: &Bound<'_, PyAny>) -> PyResult<()> {
    call::method0(timer, intern!(timer.py(), "cancel")).map(drop)
}

/// Whether this Python's asyncio refuses to sleep for "not a number".
fn refuses_nan(py: Python<'_>) -> PyResult<bool> {
    static REFUSES: PyOnceLock<bool> = PyOnceLock::new();
    REFUSES
        .get_or_try_init(py, || {
            py.import(intern!(py, "asyncio.tasks"))?
                .hasattr(intern!(py, "math"))
        })
        .copied()
}

/// The timer's callback.
fn wake_up(py: Python<'_>) -> PyResult<&'static Py<PyAny>> {
    static WAKE_UP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    WAKE_UP.get_or_try_init(py, || {
        Ok(wrap_pyfunction!(_set_result_unless_cancelled, py)?
            .into_any()
            .unbind())
    })
}

/// As asyncio's function of this name, which is what a sleeping loop shows in debug mode.
#[pyfunction]
fn _set_result_unless_cancelled(
    future: &Bound<'_, PyAny>,
    result: &Bound<'_, PyAny>,
) -> PyResult<()> {
    if park::is_cancelled(future)? {
        return Ok(());
    }
    call::method1(future, intern!(future.py(), "set_result"), result).map(drop)
}
