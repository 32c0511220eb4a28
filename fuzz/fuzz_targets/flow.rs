//! `cargo fuzz run flow`: the machine against the model that the tests of crates/core use.
#![no_main]

#[path = "../../crates/core/tests/models/mod.rs"]
mod models;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| models::flow::check(bytes));
