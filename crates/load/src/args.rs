//! The command line: what may be asked for, and one-line complaints about the rest.

use std::time::Duration;

use crate::datagrams::MARK;
use crate::target::Target;

pub const HELP: &str = "\
usage: tideloop-load (--port PORT [--host HOST] [--udp] | --unix PATH) [options]
       tideloop-load --serve N [--port PORT [--udp] | --unix PATH] [--size BYTES --times N]

Closed-loop load: every connection keeps one request in flight and checks each byte of its answer. A request is
some bytes that the server echoes, once or several times, or, with --http, one or several GET / at once.

  --host HOST          loopback address to talk to (127.0.0.1)
  --port PORT          TCP port, or UDP port
  --udp                an echo of datagrams instead, from a socket for each connection to one of the server's; an answer
                       that is lost ends the measurement after --stall
  --unix PATH          UNIX socket instead of TCP
  --connections N      connections, each with one request in flight (10)
  --size BYTES         size of a request (1024)
  --tls                an echo over TLS 1.3, whoever the server says it is
  --times N            the server sends each request back so many times: a bulk transfer (1)
  --http N             HTTP/1.1 instead of an echo: N pipelined GET / are one request
  --duration SECONDS   how long to measure (1)
  --requests N         stop after this many requests instead
  --warmup SECONDS     before measuring: connect, talk this long, disconnect (0)
  --pause SECONDS      how long a connection waits between an answer and its next request (0)
  --stall SECONDS      give up when nothing is answered for this long (10)
  --reconnect          a new connection for each request
  --serve N            be such a server instead, not of HTTP: print the port, and after the first connection lost after
                       the Nth was made the seconds of processor time used in between;
                       with --udp, between the Nth mark and the one after it
  --json               print one JSON object instead of text
  --help               this text

Exit codes: 0 measured, 1 the server misbehaved or went away, 2 bad usage.
";

#[derive(Debug, Clone)]
pub struct Options {
    pub target: Target,
    pub connections: usize,
    pub exchange: Exchange,
    pub reconnect: bool,
    pub tls: bool,
    pub stop: Stop,
    pub warmup: Duration,
    pub pause: Duration,
    pub stall: Duration,
    pub json: bool,
}

/// What a request is, and its answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Exchange {
    /// So many bytes come back as they were sent.
    Echo(usize),
    /// So many bytes come back so many times.
    Bulk(usize, usize),
    /// So many GETs in one piece, each answered alike.
    Http(usize),
}

/// When a session begins no further request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stop {
    After(Duration),
    Requests(u64),
}

#[derive(Debug)]
pub enum Parsed {
    Run(Options),
    Serve(Serve),
    Help,
}

/// What the client's own server does.
#[derive(Debug, Clone)]
pub struct Serve {
    /// None: a free port of the loopback address.
    pub place: Option<Target>,
    /// The connection, or the mark, at which the measured part begins, counted from 1.
    pub starts_at: u64,
    pub exchange: Exchange,
}

const NO_TARGET: &str = "no target: give --port or --unix; see --help";
const MAX_CONNECTIONS: u64 = 100_000;
const MAX_SIZE: u64 = 1 << 30;
const MAX_PIPELINED: u64 = 1000;
/// The sizes of datagrams: a smaller one would be a mark, a larger one does not exist.
const DATAGRAMS: std::ops::RangeInclusive<usize> = MARK + 1..=65_507;
const MAX_TIMES: u64 = 1 << 20;
const MAX_SECONDS: f64 = 86_400.0;

pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Parsed, String> {
    let mut args = args.into_iter();
    let mut host = "127.0.0.1".to_owned();
    let (mut port, mut unix, mut duration, mut requests) = (None, None, None, None);
    let (mut connections, mut json, mut reconnect) = (10, false, false);
    let (mut tls, mut udp) = (false, false);
    let (mut size, mut times, mut http, mut serve) = (None, None, None, None);
    let (mut warmup, mut pause) = (Duration::ZERO, Duration::ZERO);
    let mut stall = Duration::from_secs(10);
    while let Some(flag) = args.next() {
        let mut value = || {
            args.next()
                .ok_or_else(|| format!("{flag} needs a value; see --help"))
        };
        match flag.as_str() {
            "--help" | "-h" => return Ok(Parsed::Help),
            "--json" => json = true,
            "--reconnect" => reconnect = true,
            "--tls" => tls = true,
            "--udp" => udp = true,
            "--host" => host = value()?,
            "--port" => port = Some(whole(&flag, &value()?, 1, 65_535)? as u16),
            "--unix" => unix = Some(value()?),
            "--connections" => connections = whole(&flag, &value()?, 1, MAX_CONNECTIONS)? as usize,
            "--size" => size = Some(whole(&flag, &value()?, 1, MAX_SIZE)? as usize),
            "--times" => times = Some(whole(&flag, &value()?, 1, MAX_TIMES)? as usize),
            "--http" => http = Some(whole(&flag, &value()?, 1, MAX_PIPELINED)? as usize),
            "--serve" => serve = Some(whole(&flag, &value()?, 1, u64::MAX)?),
            "--duration" => duration = Some(seconds(&flag, &value()?)?),
            "--requests" => requests = Some(whole(&flag, &value()?, 1, u64::MAX)?),
            "--warmup" => warmup = seconds(&flag, &value()?)?,
            "--pause" => pause = seconds(&flag, &value()?)?,
            "--stall" => stall = seconds(&flag, &value()?)?,
            _ => return Err(format!("unknown argument '{flag}'; see --help")),
        }
    }
    let stop = match (duration, requests) {
        (Some(_), Some(_)) => return Err("--duration and --requests exclude each other".to_owned()),
        (None, Some(n)) => Stop::Requests(n),
        (seconds, None) => Stop::After(seconds.unwrap_or(Duration::from_secs(1))),
    };
    if stop == Stop::After(Duration::ZERO) || stall.is_zero() {
        return Err("--duration and --stall must be more than 0 seconds".to_owned());
    }
    let exchange = match (size, times, http) {
        (Some(_), _, Some(_)) => return Err("--size and --http exclude each other".to_owned()),
        (_, Some(_), Some(_)) => return Err("--times and --http exclude each other".to_owned()),
        (None, None, Some(pipelined)) => Exchange::Http(pipelined),
        (size, None, None) => Exchange::Echo(size.unwrap_or(1024)),
        (size, Some(times), None) => Exchange::Bulk(size.unwrap_or(1024), times),
    };
    if tls && (unix.is_some() || http.is_some() || serve.is_some()) {
        return Err("--tls excludes --unix, --http and --serve".to_owned());
    }
    if udp {
        if unix.is_some() || tls || http.is_some() || times.is_some() || reconnect {
            return Err("--udp excludes --unix, --tls, --http, --times and --reconnect".to_owned());
        }
        let size = size.unwrap_or(1024);
        if !DATAGRAMS.contains(&size) {
            let (low, high) = DATAGRAMS.into_inner();
            return Err(format!(
                "--size is {size}; expected from {low} to {high} bytes with --udp"
            ));
        }
    }
    let target = match (port, unix) {
        (Some(_), Some(_)) => return Err("--port and --unix exclude each other".to_owned()),
        (None, None) if udp && serve.is_some() => Some(Target::udp(&host, 0)?),
        (None, None) => None,
        (Some(port), None) if udp => Some(Target::udp(&host, port)?),
        (Some(port), None) => Some(Target::tcp(&host, port)?),
        (None, Some(path)) => Some(Target::unix(&path)?),
    };
    let target = match (serve, target) {
        (Some(_), _) if http.is_some() => {
            return Err("--serve and --http exclude each other".to_owned());
        }
        (Some(starts_at), place) => {
            return Ok(Parsed::Serve(Serve {
                place,
                starts_at,
                exchange,
            }));
        }
        (None, Some(target)) => target,
        (None, None) => return Err(NO_TARGET.to_owned()),
    };
    Ok(Parsed::Run(Options {
        target,
        connections,
        exchange,
        reconnect,
        tls,
        stop,
        warmup,
        pause,
        stall,
        json,
    }))
}

fn whole(flag: &str, text: &str, low: u64, high: u64) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|n| (low..=high).contains(n))
        .ok_or_else(|| format!("{flag} is '{text}'; expected a whole number from {low} to {high}"))
}

fn seconds(flag: &str, text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|s| (0.0..=MAX_SECONDS).contains(s))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("{flag} is '{text}'; expected seconds from 0 to {MAX_SECONDS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Parsed, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    fn complaint(line: &str) -> String {
        parsed(line).unwrap_err()
    }

    #[test]
    fn everything_has_a_default_but_the_target() {
        let Ok(Parsed::Run(options)) = parsed("--port 7") else {
            panic!("not run")
        };
        assert_eq!(options.connections, 10);
        assert_eq!(options.exchange, Exchange::Echo(1024));
        assert_eq!(options.stop, Stop::After(Duration::from_secs(1)));
        assert!(complaint("").contains("--port or --unix"));
    }

    #[test]
    fn a_bad_value_is_named_with_what_was_expected() {
        assert_eq!(
            complaint("--port 70000"),
            "--port is '70000'; expected a whole number from 1 to 65535"
        );
        assert!(complaint("--port 7 --duration soon").contains("'soon'; expected seconds"));
        assert!(complaint("--port 7 --duration nan").contains("expected seconds"));
        assert!(complaint("--port 7 --size").contains("--size needs a value"));
        assert!(complaint("--port 7 --frobnicate").contains("'--frobnicate'"));
        assert!(complaint("--port 7 --duration 1 --requests 1").contains("exclude"));
        assert!(complaint("--port 7 --size 1 --http 1").contains("exclude"));
        assert!(complaint("--port 7 --tls --http 1").contains("excludes"));
        assert!(complaint("--port 7 --times 2 --http 1").contains("exclude"));
        assert!(complaint("--serve 7 --http 1").contains("exclude"));
    }

    #[test]
    fn a_server_does_what_its_client_would_ask_for() {
        let Ok(Parsed::Serve(serve)) = parsed("--serve 3 --size 10 --times 4") else {
            panic!("not served")
        };
        assert_eq!(
            (serve.starts_at, serve.exchange),
            (3, Exchange::Bulk(10, 4))
        );
    }

    #[test]
    fn a_datagram_is_neither_a_mark_nor_larger_than_there_are() {
        for size in [0, 1, 65_508] {
            let text = complaint(&format!("--udp --port 7 --size {size}"));
            assert!(text.contains("expected"), "{text}");
        }
        let Ok(Parsed::Run(options)) = parsed("--udp --port 7 --size 65507") else {
            panic!("not run")
        };
        assert!(matches!(options.target, Target::Udp(_)));
        for other in ["--tls", "--http 1", "--times 2", "--reconnect"] {
            let text = complaint(&format!("--udp --port 7 {other}"));
            assert!(text.contains("--udp excludes"), "{text}");
        }
        let Ok(Parsed::Serve(serve)) = parsed("--serve 1 --udp") else {
            panic!("not served")
        };
        assert!(matches!(serve.place, Some(Target::Udp(_))));
    }

    #[test]
    fn only_loopback_is_a_target() {
        assert!(complaint("--host 192.0.2.1 --port 7").contains("not a loopback address"));
        assert!(complaint("--udp --host 192.0.2.1 --port 7").contains("not a loopback address"));
        assert!(complaint("--host example.invalid --port 7").contains("example.invalid"));
        for host in ["127.0.0.1", "127.9.9.9", "::1", "localhost"] {
            assert!(parsed(&format!("--port 7 --host {host}")).is_ok(), "{host}");
        }
    }
}
