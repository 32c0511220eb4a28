//! Who may ask.
//!
//! Behind a UNIX socket stands who the system says: the same user, or root. On a TCP port of this machine anybody may
//! knock, also a page of any site in the user's browser. Such a page can send requests here, and reads an answer
//! if its own host's name leads to this machine ("DNS rebinding"). So the port asks for three things: that the
//! request was sent to this machine by its own name, that it was sent by no page but ours, and a secret.

use super::{Refusal, Request};

/// What a request has come through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door<'a> {
    /// A UNIX socket; whether who knocks is who may.
    Local { trusted: bool },
    /// A port of 127.0.0.1, and the secret.
    Port { port: u16, token: &'a str },
}

impl Request<'_> {
    /// # Errors
    ///
    /// It is not answered.
    pub fn admitted(&self, door: Door<'_>) -> Result<(), Refusal> {
        match door {
            Door::Local { trusted: false } => {
                Err(Refusal::new(403, "only the same user or root may ask"))
            }
            // A browser does not come this way by itself.
            Door::Local { .. } if self.origin.is_some() => Err(FOREIGN_ORIGIN),
            Door::Local { .. } => Ok(()),
            Door::Port { port, token } => self.admitted_by_port(port, token),
        }
    }

    fn admitted_by_port(&self, port: u16, token: &str) -> Result<(), Refusal> {
        let hosts = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
        if !self
            .host
            .is_some_and(|host| hosts.iter().any(|name| name == host))
        {
            return Err(Refusal::new(403, "expected the host 127.0.0.1"));
        }
        let is_ours = |origin: &str| {
            let host = origin.strip_prefix("http://");
            host.is_some_and(|host| hosts.iter().any(|name| name == host))
        };
        if !self.origin.is_none_or(is_ours) {
            return Err(FOREIGN_ORIGIN);
        }
        let bearer = self
            .authorization
            .and_then(|value| value.strip_prefix("Bearer "));
        match bearer.or_else(|| self.parameter("token")) {
            None => Err(Refusal::new(403, "expected a token")),
            Some(given) if same_secret(given, token) => Ok(()),
            Some(_) => Err(Refusal::new(403, "the token is another one")),
        }
    }
}

const FOREIGN_ORIGIN: Refusal = Refusal::new(403, "asked by a page of another origin");

/// Whether a text is the secret, in a time that tells nothing but the secret's length.
#[must_use]
pub fn same_secret(given: &str, secret: &str) -> bool {
    let given = given.as_bytes();
    let mut differ = u8::from(given.len() != secret.len() || secret.is_empty());
    for (index, byte) in secret.bytes().enumerate() {
        // The branch depends on lengths alone.
        let other = if index < given.len() {
            given[index]
        } else {
            !byte
        };
        differ = std::hint::black_box(differ | (byte ^ other));
    }
    differ == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: Door<'_> = Door::Port {
        port: 8123,
        token: "sesame",
    };

    fn asked() -> Request<'static> {
        Request {
            path: "/",
            host: Some("127.0.0.1:8123"),
            authorization: Some("Bearer sesame"),
            ..Request::default()
        }
    }

    fn refusal(request: &Request<'_>, door: Door<'_>) -> Option<&'static str> {
        request.admitted(door).err().map(|refusal| refusal.reason)
    }

    #[test]
    fn the_secret_opens_the_port() {
        let mut request = asked();
        assert_eq!(refusal(&request, PORT), None);
        request.host = Some("localhost:8123");
        request.origin = Some("http://localhost:8123");
        assert_eq!(refusal(&request, PORT), None);
        request.authorization = None;
        request.query = "a=b&token=sesame";
        assert_eq!(refusal(&request, PORT), None);
    }

    #[test]
    fn without_it_nothing_does() {
        let mut request = asked();
        request.authorization = None;
        assert_eq!(refusal(&request, PORT), Some("expected a token"));
        for wrong in ["", "sesam", "sesame ", "sesamf", "Sesame", "sesamesesame"] {
            let query = format!("token={wrong}");
            let request = Request {
                query: &query,
                ..request.clone()
            };
            assert_eq!(refusal(&request, PORT), Some("the token is another one"));
        }
        assert!(!same_secret("", ""), "no secret is none");
    }

    #[test]
    fn other_hosts_are_refused_whatever_they_know() {
        for host in [
            None,
            Some("127.0.0.1"),
            Some("127.0.0.1:80"),
            Some("evil.example:8123"),
            Some("127.0.0.1:8123.evil.example"),
            Some("[::1]:8123"),
            Some(""),
        ] {
            let request = Request { host, ..asked() };
            assert_eq!(
                refusal(&request, PORT),
                Some("expected the host 127.0.0.1"),
                "{host:?}"
            );
        }
    }

    #[test]
    fn pages_of_other_origins_are_refused_whatever_they_know() {
        for origin in [
            "null",
            "http://evil.example",
            "https://127.0.0.1:8123",
            "http://127.0.0.1:8124",
            "http://127.0.0.1",
            "",
        ] {
            let request = Request {
                origin: Some(origin),
                ..asked()
            };
            let wanted = Some("asked by a page of another origin");
            assert_eq!(refusal(&request, PORT), wanted, "{origin:?}");
            assert_eq!(refusal(&request, Door::Local { trusted: true }), wanted);
        }
    }

    #[test]
    fn a_local_peer_is_who_the_system_says() {
        let request = Request::default();
        assert_eq!(refusal(&request, Door::Local { trusted: true }), None);
        assert_eq!(
            refusal(&request, Door::Local { trusted: false }),
            Some("only the same user or root may ask")
        );
    }
}
