//! As much of HTTP/1.1 (RFC 9112) as answering a question takes: the head of a GET request, who may ask, and the head
//! of an answer.
//!
//! What is not understood is refused, not guessed at: one request to a connection, no body, CRLF and nothing else.

mod admission;
mod request;

pub use admission::{Door, same_secret};
pub use request::{MOST, Request, parse};

/// Why a request is refused: a status of HTTP and a sentence for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub reason: &'static str,
}

impl Refusal {
    #[must_use]
    pub const fn new(status: u16, reason: &'static str) -> Self {
        Self { status, reason }
    }
}

/// The words that go with a status.
#[must_use]
pub fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        505 => "HTTP Version Not Supported",
        _ => "Internal Server Error",
    }
}

/// The head of an answer, after which the connection is closed; `length`: None where the body ends with it.
#[must_use]
pub fn head(status: u16, kind: &str, length: Option<usize>, policy: &str) -> String {
    let length = length.map_or_else(String::new, |length| {
        format!("Content-Length: {length}\r\n")
    });
    let allow = if status == 405 { "Allow: GET\r\n" } else { "" };
    format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {kind}\r\n{length}{allow}Connection: close\r\nCache-Control: no-store\r\n\
         Content-Security-Policy: {policy}\r\nCross-Origin-Resource-Policy: same-origin\r\n\
         Referrer-Policy: no-referrer\r\nX-Content-Type-Options: nosniff\r\n\r\n",
        phrase(status)
    )
}
