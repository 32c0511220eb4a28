//! Pure logic of tideloop: no operating system, no Python, no clock.
//!
//! Time and bytes come in as arguments, decisions go out as values; nothing here blocks, allocates
//! behind the caller's back on a hot path, or runs foreign code. Whatever is removed from a container
//! is handed back to the caller, because dropping a Python object may run arbitrary Python, and that
//! must never happen while one of these structures is borrowed.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::let_underscore_must_use))]

pub mod adaptive;
pub mod batch;
pub mod bursts;
pub mod cache;
pub mod channel;
pub mod datagram;
pub mod flow;
pub mod graph;
pub mod heap;
pub mod histogram;
pub mod hold;
pub mod http;
pub mod inbox;
pub mod json;
pub mod limits;
#[cfg(all(test, loom))]
mod models;
pub mod observe;
pub mod parking;
pub mod prometheus;
pub mod ranks;
pub mod rate;
pub mod ready;
pub mod registry;
pub mod room;
pub mod stream;
pub mod sync;
pub mod timeout;
pub mod timers;
pub mod turn;
pub mod waiters;
