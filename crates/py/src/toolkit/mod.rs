//! The toolkit's primitives: limits, queues, channels and what else programs coordinate themselves with.

pub mod group;
pub mod task_handle;
