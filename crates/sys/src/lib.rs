//! The operating system as tideloop sees it. All unsafe code that talks to it lives in this crate.
//!
//! What every system must supply, and nothing more:
//!
//! * [`selector::Selector`]: readiness of descriptors, with nanosecond timeouts where the system has
//!   them, level-triggered, wakeable from any thread. `epoll` on Linux; `portable` (the `polling`
//!   crate: kqueue, IOCP, epoll) everywhere, Linux included, so that it is tested there.
//! * [`socket`]: owned non-blocking sockets.
//! * [`serving`]: listening sockets, and who knocks.
//! * [`datagram`]: datagrams in batches where the system has them.
//! * [`process`]: the end of a process, for a selector to wait for.
//! * [`pipe`]: pipes whose ends never block.
//! * [`clock`]: monotonic nanoseconds.
//! * [`fork`]: whether we are in a forked child.
//! * [`stack`]: how much room a thread's stack has left.
//! * [`thread`]: a thread as another one sees it.
//! * [`bell`]: what a thread waits for, and a signal rings.
//! * [`precision`]: timers without slack while a loop runs.
//!
//! Differences between systems end here: nothing above this crate asks what system it runs on.

pub mod bell;
pub mod clock;
pub mod datagram;
pub mod fork;
pub mod pipe;
pub mod precision;
pub mod process;
pub mod selector;
pub mod serving;
pub mod socket;
pub mod stack;
pub mod thread;
