//! HTTP as far as a load client needs it: one request, and what its answer is.
//!
//! The answer is learned once, from a connection of its own, and must be the same ever after: so every byte
//! of every answer is compared, as in an echo.

use std::io::{self, Read, Write};

use crate::target::Stream;

/// What is asked.
pub const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

const MAX_ANSWER: usize = 16 << 20;

/// Asks once, on a blocking stream, and returns the whole answer.
pub fn learn(stream: &mut Stream) -> io::Result<Vec<u8>> {
    stream.write_all(REQUEST)?;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(len) = length(&answer)? {
            if answer.len() > len {
                return Err(bad("more than the Content-Length"));
            }
            if answer.len() == len {
                return Ok(answer);
            }
        }
        match stream.read(&mut piece)? {
            0 => return Err(bad("an end before its own")),
            n => answer.extend_from_slice(&piece[..n]),
        }
    }
}

/// How long the answer that begins like this is, once its head is complete.
fn length(answer: &[u8]) -> io::Result<Option<usize>> {
    const END: &[u8] = b"\r\n\r\n";
    let Some(end) = answer.windows(END.len()).position(|four| four == END) else {
        return match answer.len() > MAX_ANSWER {
            true => Err(bad("no end of its head")),
            false => Ok(None),
        };
    };
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| bad("a head that is no text"))?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(bad("another status than HTTP/1.1 200"));
    }
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let length = fields
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .filter(|&length| length <= MAX_ANSWER)
        .ok_or_else(|| bad("no usable Content-Length"))?;
    Ok(Some(end + END.len() + length))
}

fn bad(what: &str) -> io::Error {
    let text = format!("the server's answer to GET / has {what}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::length;

    #[test]
    fn an_answer_is_as_long_as_it_says() {
        let answer = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length:  5\r\n\r\nhello";
        assert_eq!(length(answer).unwrap(), Some(answer.len()));
        assert_eq!(length(&answer[..20]).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        for (answer, words) in [
            ("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "status"),
            ("HTTP/1.1 200 OK\r\n\r\n", "Content-Length"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
                "Content-Length",
            ),
        ] {
            let error = length(answer.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
