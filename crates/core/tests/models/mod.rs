//! A plain model of each machine of the crate, and a check that drives both with the same operations.
//!
//! The operations come out of bytes, whoever makes them: `tests/model_machines.rs` a seeded generator,
//! `fuzz/` at the top of the repository a fuzzer that looks for new paths. A check panics where machine
//! and model differ.

pub mod flow;
pub mod histogram;
pub mod registry;
pub mod stream;
pub mod timers;
pub mod turns;

use arbitrary::{Arbitrary, Unstructured};

/// Reads a program of operations from bytes, and performs it on machine and model.
pub type Check = fn(&[u8]);

/// Every check, by the name of its machine.
#[allow(dead_code, reason = "a fuzz target drives one of them")]
pub const ALL: [(&str, Check); 6] = [
    ("flow", flow::check),
    ("histogram", histogram::check),
    ("registry", registry::check),
    ("stream", stream::check),
    ("timers", timers::check),
    ("turns", turns::check),
];

/// Draws operations until the bytes are used up.
fn operations<T: for<'a> Arbitrary<'a>>(bytes: &[u8]) -> impl Iterator<Item = T> + '_ {
    let mut source = Unstructured::new(bytes);
    std::iter::from_fn(move || {
        if source.is_empty() {
            return None;
        }
        source.arbitrary().ok()
    })
}
