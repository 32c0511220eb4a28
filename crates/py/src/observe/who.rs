//! Whose step it was.

use pyo3::intern;
use pyo3::prelude::*;

/// What has run.
pub enum Who<'a, 'py> {
    Task(&'a Bound<'py, PyAny>),
    Callback(Option<&'a Bound<'py, PyAny>>),
    /// A transport, which has called its protocol.
    Transport(&'a Bound<'py, PyAny>),
    /// One of several steps.
    OneOf,
    /// No step: the loop waited for the GIL, or ran a signal's handler.
    Loop,
}

/// The name of what has run, with its file and line and the name of its task.
#[derive(Default, Clone)]
pub struct Described {
    pub what: String,
    pub file: String,
    pub line: u32,
    pub task: String,
}

impl<'py> Who<'_, 'py> {
    /// The task, if it is one.
    pub fn task(&self) -> Option<Bound<'py, PyAny>> {
        match self {
            Self::Task(task) => Some((*task).clone()),
            _ => None,
        }
    }

    /// Asks it, and is content with what it gets: no error of a strange object reaches the loop.
    pub fn describe(&self) -> Described {
        match self {
            Self::Task(task) => of_task(task).unwrap_or_default(),
            Self::Callback(Some(callback)) => of_callable(callback).unwrap_or_default(),
            Self::Transport(transport) => of_transport(transport).unwrap_or_default(),
            Self::Loop => Described {
                what: "the event loop".to_owned(),
                ..Described::default()
            },
            Self::Callback(None) | Self::OneOf => Described::default(),
        }
    }
}

fn text(object: &Bound<'_, PyAny>) -> String {
    object
        .str()
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn of_task(task: &Bound<'_, PyAny>) -> PyResult<Described> {
    let py = task.py();
    let name = task
        .call_method0(intern!(py, "get_name"))
        .map(|name| text(&name))
        .unwrap_or_default();
    let coro = task.call_method0(intern!(py, "get_coro"))?;
    let mut found = Described {
        what: coro
            .getattr(intern!(py, "__qualname__"))
            .map(|name| text(&name))
            .unwrap_or_default(),
        task: name,
        ..Described::default()
    };
    for (code, frame) in [("cr_code", "cr_frame"), ("gi_code", "gi_frame")] {
        if let Ok(code) = coro.getattr(code) {
            place(&mut found, &code);
            if let Some(line) = coro
                .getattr(frame)
                .ok()
                .filter(|frame| !frame.is_none())
                .and_then(|frame| frame.getattr(intern!(py, "f_lineno")).ok()?.extract().ok())
            {
                found.line = line;
            }
            break;
        }
    }
    Ok(found)
}

/// Where a code object begins.
fn place(found: &mut Described, code: &Bound<'_, PyAny>) {
    let py = code.py();
    if let Ok(file) = code.getattr(intern!(py, "co_filename")) {
        found.file = text(&file);
    }
    found.line = code
        .getattr(intern!(py, "co_firstlineno"))
        .and_then(|line| line.extract())
        .unwrap_or(0);
}

fn of_callable(callback: &Bound<'_, PyAny>) -> PyResult<Described> {
    let py = callback.py();
    let mut callable = callback.clone();
    // functools.partial, and bound methods: what they stand for.
    for name in ["func", "__func__"] {
        if let Ok(inner) = callable.getattr(name)
            && inner.is_callable()
        {
            callable = inner;
        }
    }
    let what = match callable.getattr(intern!(py, "__qualname__")) {
        Ok(name) => text(&name),
        Err(_) => text(callable.get_type().qualname()?.as_any()),
    };
    let mut found = Described {
        what,
        ..Described::default()
    };
    if let Ok(code) = callable.getattr(intern!(py, "__code__")) {
        place(&mut found, &code);
    }
    Ok(found)
}

fn of_transport(transport: &Bound<'_, PyAny>) -> PyResult<Described> {
    let py = transport.py();
    let protocol = transport.call_method0(intern!(py, "get_protocol"))?;
    Ok(Described {
        what: text(protocol.get_type().qualname()?.as_any()),
        ..Described::default()
    })
}
