//! What a loop does with its time: counts and histograms that cost next to nothing to keep and that any thread
//! may read.
//!
//! **Who writes.** One [`Meter`] per run of a loop, in the loop's thread, writes one [`Instrument`]. There is never a
//! second writer, so a counter is raised by a plain load and a plain store; no instruction here is a locked one.
//! **Who reads.** Any thread, at any time, without the GIL. Each number is whole (an atomic word); two of them may
//! be one step apart, which is why nothing is derived from two numbers that had to agree. The averages, five words
//! that belong together, have a sequence number, and a reader that saw them change reads them again.
//!
//! **How often the clock is read.** A read of the processor's counter takes about 10 ns, a whole step of a task 200. So
//! a meter has two paces. *Each*: one read per step, the end of one being the start of the next; a turn of few steps
//! has made that read anyway. *Dense*, once 32 steps in a row have taken less than 2 µs each on average: 24 to
//! 146 steps, by chance and the more the shorter they are, are timed together (the *gap*) and the next one on its own (the *sample*), which stands for all
//! of them in the histogram. That is an unbiased sample of short steps; a long step is not left to luck: a gap of 0.2 ms or
//! more counts as a step of that length, and the next steps, up to 4096, are timed one by one, so that whatever does it
//! again is caught by name. On a busy machine steps are long because another process has the processor, and no care finds
//! them again; so care that is in vain is bounded by a 32nd of all steps, and care that is not goes on for free.
//! A poll divides a gap, so what is timed together never spans a wait.
//!
//! Deliveries to protocols are steps as well. Nobody waits behind them in the ring, so a few of them are timed together up to 12 µs
//! each, also where the steps of the ring are longer than short: then the clock is read once more behind the last one of a poll.
//!
//! **Ready delay without time stamps.** An entry of the ready ring has no room for the time at which it came, and
//! needs none: entries leave the ring in the order in which they came, so [`Arrivals`] only notes how many had
//! come by each read of the clock, and looks up when that of a timed step did: the delay is the time that an entry has
//! waited *behind others*, from the end of the step that scheduled it. The error is a step's or gap's length at most.
//!
//! **Time** comes in as an argument, in nanoseconds; it need not be exact and may go back a little between two reads.

mod arrivals;
mod averages;
mod block;
pub mod book;
pub mod chrome;
mod counts;
mod instrument;
mod meter;
pub mod ring;
mod rounds;

pub use averages::{Averages, Load};
pub use block::{Cause, Evidence, Frame, Look, frames};
pub use counts::SharedHistogram;
pub use instrument::{Instrument, Spent};
pub use meter::{Meter, Timed};

pub use arrivals::Arrivals;
pub use rounds::{Round, round};
