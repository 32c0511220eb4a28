//! Pipes whose ends never block: bytes, ends, and readiness on every selector.
#![allow(clippy::unwrap_used)]

use std::io::{self, ErrorKind};

use tideloop_sys::pipe::{self, Reader, Writer};
use tideloop_sys::selector::{self, Backend, Events, Selector};

const BACKENDS: [Backend; 2] = [Backend::Default, Backend::Portable];
const KEY: u64 = 7;
const SECONDS: u64 = 1_000_000_000;

fn ready(selector: &dyn Selector, timeout: u64) -> bool {
    let mut events = Events::default();
    selector.wait(&mut events, Some(timeout)).unwrap();
    events.iter().any(|event| event.key == KEY)
}

/// Ends need a moment where an operation must finish first.
fn until_done<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            other => return other,
        }
    }
}

fn read(reader: &mut Reader, count: usize) -> Vec<u8> {
    let mut found = vec![0; count];
    let mut len = 0;
    while len < count {
        len += until_done(|| reader.read(&mut found[len..])).unwrap();
    }
    found
}

fn write(writer: &mut Writer, bytes: &[u8]) {
    let mut sent = 0;
    while sent < bytes.len() {
        sent += until_done(|| writer.write(&bytes[sent..])).unwrap();
    }
}

#[test]
fn bytes_go_through_and_end() {
    let (mut reader, mut writer) = pipe::pair().unwrap();
    let mut buffer = [0; 4];
    let error = reader.read(&mut buffer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    write(&mut writer, b"hello, world");
    assert_eq!(read(&mut reader, 5), b"hello");
    assert_eq!(read(&mut reader, 7), b", world");
    write(&mut writer, b"last");
    until_done(|| writer.flush()).unwrap();
    drop(writer);
    assert_eq!(
        read(&mut reader, 4),
        b"last",
        "what was written is not lost"
    );
    assert_eq!(until_done(|| reader.read(&mut buffer)).unwrap(), 0, "end");
    assert_eq!(until_done(|| reader.read(&mut buffer)).unwrap(), 0, "still");
}

#[test]
fn a_full_pipe_takes_no_more_and_loses_nothing() {
    let (mut reader, mut writer) = pipe::pair().unwrap();
    let piece: Vec<u8> = (0..=250).cycle().take(10_000).collect();
    let mut written = Vec::new();
    let error = loop {
        match writer.write(&piece) {
            Ok(len) => written.extend_from_slice(&piece[..len]),
            Err(error) => break error,
        }
        assert!(written.len() < 1 << 24, "a pipe has an end");
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let count = written.len();
    assert_eq!(read(&mut reader, count), written);
}

#[test]
fn a_writer_without_a_reader_is_told() {
    let (reader, mut writer) = pipe::pair().unwrap();
    drop(reader);
    let error = loop {
        if let Err(error) = until_done(|| writer.write(b"x")) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn readiness_to_read_is_level_triggered() {
    for backend in BACKENDS {
        let selector = selector::new(backend).unwrap();
        let (mut reader, mut writer) = pipe::pair().unwrap();
        reader.watch(&*selector, KEY).unwrap();
        assert!(!ready(&*selector, 0), "nothing there");
        write(&mut writer, b"hello");
        assert!(ready(&*selector, 20 * SECONDS));
        assert!(ready(&*selector, 20 * SECONDS), "still unread");
        assert_eq!(read(&mut reader, 5), b"hello");
        drop(writer);
        assert!(ready(&*selector, 20 * SECONDS), "the end");
        assert_eq!(until_done(|| reader.read(&mut [0; 1])).unwrap(), 0);
        reader.unwatch(&*selector).unwrap();
    }
}

#[test]
fn readiness_to_write_comes_back_with_room() {
    for backend in BACKENDS {
        let selector = selector::new(backend).unwrap();
        let (mut reader, mut writer) = pipe::pair().unwrap();
        writer.watch(&*selector, KEY).unwrap();
        assert!(ready(&*selector, 20 * SECONDS), "an empty pipe has room");
        let mut written = 0;
        while let Ok(len) = writer.write(&[1; 50_000]) {
            written += len;
        }
        read(&mut reader, written);
        assert!(ready(&*selector, 20 * SECONDS));
        write(&mut writer, b"more");
        assert_eq!(read(&mut reader, 4), b"more");
        writer.unwatch(&*selector).unwrap();
    }
}

#[test]
fn an_end_may_be_dropped_while_an_operation_is_under_way() {
    for _ in 0..100 {
        let (reader, mut writer) = pipe::pair().unwrap();
        while writer.write(&[1; 50_000]).is_ok() {}
        drop(writer);
        drop(reader);
    }
}
