//! The head of a request.

use super::Refusal;

/// Bytes that a head may have.
pub const MOST: usize = 8 * 1024;

/// What is asked, and by what right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request<'a> {
    pub path: &'a str,
    pub query: &'a str,
    pub host: Option<&'a str>,
    pub origin: Option<&'a str>,
    pub authorization: Option<&'a str>,
}

impl<'a> Request<'a> {
    /// What the query says of this name. Nothing is decoded: our names and values need no escapes.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&'a str> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key == name).then_some(value)
        })
    }
}

/// The request that these bytes begin with; None: its head has not come whole.
///
/// # Errors
///
/// It is none that is answered.
pub fn parse(bytes: &[u8]) -> Result<Option<Request<'_>>, Refusal> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return match bytes.len() {
            ..MOST => Ok(None),
            _ => Err(TOO_LONG),
        };
    };
    if end + 4 > MOST {
        return Err(TOO_LONG);
    }
    let bad = || Refusal::new(400, "the request's head is not well-formed");
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| bad())?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next().ok_or_else(bad)?.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad());
    };
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Err(Refusal::new(505, "expected HTTP/1.1"));
    }
    if method != "GET" {
        return Err(Refusal::new(405, "expected GET"));
    }
    if !target.starts_with('/') || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(bad());
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        path,
        query,
        ..Request::default()
    };
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(bad)?;
        let value = value.trim_matches([' ', '\t']);
        if !is_token(name)
            || value
                .chars()
                .any(|letter| letter.is_control() && letter != '\t')
        {
            return Err(bad());
        }
        let known = match name.to_ascii_lowercase().as_str() {
            "host" => &mut request.host,
            "origin" => &mut request.origin,
            "authorization" => &mut request.authorization,
            "transfer-encoding" => return Err(BODY),
            "content-length" if value != "0" => return Err(BODY),
            _ => continue,
        };
        // Two of them may mean two things to two readers.
        if known.replace(value).is_some() {
            return Err(bad());
        }
    }
    Ok(Some(request))
}

const TOO_LONG: Refusal = Refusal::new(431, "the request's head is longer than 8 KiB");
const BODY: Refusal = Refusal::new(400, "expected no body");

/// Whether it can be the name of a field (RFC 9110, 5.6.2).
fn is_token(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_letter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ASKED: &str = "GET /v1/record?seconds=3&token=x HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\
                         X-Any:\tthing \r\nORIGIN: http://a\r\nAuthorization: Bearer y\r\n\r\n";

    fn status(text: &str) -> u16 {
        parse(text.as_bytes()).map_or_else(|refusal| refusal.status, |_| 200)
    }

    #[test]
    fn a_request_is_read() {
        let request = parse(ASKED.as_bytes()).unwrap().unwrap();
        assert_eq!(request.path, "/v1/record");
        assert_eq!(request.parameter("seconds"), Some("3"));
        assert_eq!(request.parameter("token"), Some("x"));
        assert_eq!(request.parameter("nothing"), None);
        assert_eq!(request.host, Some("127.0.0.1:80"));
        assert_eq!(request.origin, Some("http://a"));
        assert_eq!(request.authorization, Some("Bearer y"));
    }

    #[test]
    fn what_has_not_come_whole_is_waited_for() {
        for end in 0..ASKED.len() {
            assert_eq!(parse(&ASKED.as_bytes()[..end]), Ok(None));
        }
    }

    #[test]
    fn what_is_not_answered_is_refused() {
        assert_eq!(status("POST / HTTP/1.1\r\n\r\n"), 405);
        assert_eq!(status("get / HTTP/1.1\r\n\r\n"), 405);
        assert_eq!(status("GET / HTTP/2\r\n\r\n"), 505);
        for bad in [
            "\r\n\r\n",
            "GET /\r\n\r\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET http://127.0.0.1/ HTTP/1.1\r\n\r\n",
            "GET /\u{7f} HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\n folded: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(status(bad), 400, "{bad:?}");
        }
        assert_eq!(
            parse(b"GET /\xff HTTP/1.1\r\n\r\n").unwrap_err().status,
            400
        );
        assert_eq!(status("GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"), 200);
    }

    #[test]
    fn a_head_has_a_longest_length() {
        let filled = |length: usize| {
            let rest = "GET / HTTP/1.1\r\nX: \r\n\r\n".len();
            format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(length - rest))
        };
        assert_eq!(status(&filled(MOST)), 200);
        assert_eq!(status(&filled(MOST + 1)), 431);
        assert_eq!(status(&"x".repeat(MOST)), 431);
        assert_eq!(status(&"x".repeat(MOST - 1)), 200, "more may come");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(parse(&bytes));
        }

        #[test]
        fn nothing_in_a_request_makes_it_panic(at in 0..ASKED.len(), bytes in prop::collection::vec(any::<u8>(), 0..8)) {
            let mut asked = ASKED.as_bytes().to_vec();
            asked.splice(at..at, bytes);
            drop(parse(&asked));
        }
    }
}
