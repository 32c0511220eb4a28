//! GraphPlan: a graph as its runs need it, made once and shared by them.

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::graph::{Cycle, Plan};

/// What a node is called with.
#[derive(Debug)]
pub struct Call {
    /// None: the node has no function, its value is given.
    pub function: Option<Py<PyAny>>,
    pub name: Py<PyAny>,
    /// The nodes whose values are the arguments.
    pub arguments: Box<[u32]>,
    /// Names of the last ones of them.
    pub keywords: Option<Py<PyTuple>>,
}

impl Call {
    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        Self {
            function: self.function.as_ref().map(|it| it.clone_ref(py)),
            name: self.name.clone_ref(py),
            arguments: self.arguments.clone(),
            keywords: self.keywords.as_ref().map(|it| it.clone_ref(py)),
        }
    }

    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.function)?;
        visit.call(&self.name)?;
        visit.call(&self.keywords)
    }
}

/// A node as Python describes it: what it is called with, what it depends on, its weight and its priority.
pub struct Described {
    pub call: Call,
    pub dependencies: Vec<u32>,
    pub weight: f64,
    pub priority: i32,
}

impl Described {
    /// Reads a `tideloop.graphs.Node`; `count` is how many nodes there are to depend on.
    pub fn read(node: &Bound<'_, PyAny>, count: usize) -> PyResult<Self> {
        let py = node.py();
        let numbers = |name| -> PyResult<Vec<u32>> {
            let numbers: Vec<u32> = node.getattr(name)?.extract()?;
            match numbers.iter().find(|&&number| number as usize >= count) {
                None => Ok(numbers),
                Some(number) => Err(PyValueError::new_err(format!("there is no node {number}"))),
            }
        };
        Ok(Self {
            call: Call {
                function: node.getattr(intern!(py, "_called"))?.extract()?,
                name: node.getattr(intern!(py, "name"))?.unbind(),
                arguments: numbers(intern!(py, "_arguments"))?.into_boxed_slice(),
                keywords: node.getattr(intern!(py, "_keywords"))?.extract()?,
            },
            dependencies: numbers(intern!(py, "_needs"))?,
            weight: node.getattr(intern!(py, "estimate"))?.extract()?,
            priority: node.getattr(intern!(py, "priority"))?.extract()?,
        })
    }
}

/// What depends on what, and what is called with what.
#[pyclass(frozen, module = "tideloop._tideloop")]
pub struct GraphPlan {
    pub plan: Plan,
    pub calls: Vec<Call>,
}

#[pymethods]
impl GraphPlan {
    /// Raises ValueError with the numbers of the nodes of a cycle, if there is one.
    #[new]
    fn new(nodes: &Bound<'_, PyList>) -> PyResult<Self> {
        let count = nodes.len();
        let mut plan = Plan::default();
        let mut calls = Vec::with_capacity(count);
        let mut needs = Vec::with_capacity(count);
        for node in nodes.iter() {
            let described = Described::read(&node, count)?;
            plan.add(described.weight, described.priority);
            calls.push(described.call);
            needs.push(described.dependencies);
        }
        for (node, needs) in needs.into_iter().enumerate() {
            plan.link(node as u32, needs);
        }
        match plan.seal() {
            Ok(()) => Ok(Self { plan, calls }),
            Err(Cycle(path)) => Err(PyValueError::new_err((path,))),
        }
    }

    fn __len__(&self) -> usize {
        self.calls.len()
    }

    /// Numbers of nodes in groups that do not depend on each other inside of a group.
    fn groups(&self) -> Vec<Vec<u32>> {
        self.plan.groups()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.calls.iter().try_for_each(|call| call.traverse(&visit))
    }
}
