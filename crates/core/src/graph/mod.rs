//! Graphs of work: what may run next, by in-degree counters and critical path.
//!
//! A [`Plan`] is what depends on what, sealed once its cycles were looked for; a [`Progress`] is one run of it.
//! Nodes are numbers, in the order in which they were added. Nothing here runs, waits or knows the time: whoever runs
//! the nodes takes them with [`Progress::take`] and says how they have ended.
//!
//! **Cost.** An edge is looked at once when its first node ends, and once more if what is behind it is skipped. Of the
//! nodes that are ready the heap gives the one of the highest priority, of these the one with the longest way to the
//! end behind it (its own weight included), of these the one that was added first; that is the logarithm of the number of nodes
//! that are ready. The longest way is that of list scheduling by critical path (Graham, "Bounds on Multiprocessing
//! Timing Anomalies", 1969; Hu, "Parallel Sequencing and Assembly Line Problems", 1961).

mod plan;
mod progress;

pub use plan::{Cycle, Plan};
pub use progress::{Joined, Progress, Refused, State};
