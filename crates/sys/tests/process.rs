//! The end of a process, on every selector.
#![allow(clippy::unwrap_used)]

use std::process::{Child, Command, Stdio};

use tideloop_sys::process::Process;
use tideloop_sys::selector::{self, Backend, Events};

const BACKENDS: [Backend; 2] = [Backend::Default, Backend::Portable];
const KEY: u64 = 7;
const SECONDS: u64 = 1_000_000_000;

/// Lives until its standard input ends: this very test program, asked for a test that reads it.
fn child() -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lives_until_its_input_ends", "--ignored"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "the body of a child process"]
fn lives_until_its_input_ends() {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
}

#[test]
fn its_end_is_an_event() {
    for backend in BACKENDS {
        let selector = selector::new(backend).unwrap();
        let mut events = Events::default();
        let mut child = child();
        let process = Process::open(child.id()).unwrap();
        selector.add_process(&process, KEY).unwrap();
        selector.wait(&mut events, Some(0)).unwrap();
        assert!(events.is_empty(), "it lives");

        drop(child.stdin.take());
        selector.wait(&mut events, Some(20 * SECONDS)).unwrap();
        let event = events.get(0).unwrap();
        assert!(event.key == KEY && event.readable);
        selector.remove_process(&process).unwrap();
        assert!(child.wait().unwrap().success());
        selector.wait(&mut events, Some(0)).unwrap();
        assert!(events.iter().all(|event| event.key != KEY) || cfg!(windows));
    }
}

#[test]
fn one_that_has_ended_before_is_an_event_too() {
    for backend in BACKENDS {
        let selector = selector::new(backend).unwrap();
        let mut events = Events::default();
        let mut child = child();
        let process = Process::open(child.id()).unwrap();
        drop(child.stdin.take());
        ended(&mut child);
        selector.add_process(&process, KEY).unwrap();
        selector.wait(&mut events, Some(20 * SECONDS)).unwrap();
        assert!(events.get(0).is_some_and(|event| event.key == KEY));
        selector.remove_process(&process).unwrap();
        child.wait().unwrap();
    }
}

/// Waits for the end without collecting the child, where that is a difference.
#[cfg(unix)]
fn ended(child: &mut Child) {
    // SAFETY: all zeroes are a valid siginfo_t, which the system fills in.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOWAIT;
        assert_eq!(libc::waitid(libc::P_PID, child.id(), &mut info, flags), 0);
    }
}

#[cfg(windows)]
fn ended(child: &mut Child) {
    child.wait().unwrap();
}

#[test]
fn nobody_is_an_error() {
    // Process numbers end far below on every system.
    let nobody = Process::open(i32::MAX as u32 - 1);
    assert!(nobody.is_err() || cfg!(all(unix, not(target_os = "linux"))));
}
