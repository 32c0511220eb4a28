//! One client: what it has asked, what it is told, and how long it may take for either.

use tideloop_core::http::{self, Door, Refusal};
use tideloop_sys::selector::Interest;
use tideloop_sys::socket::{self, Socket};

use super::collector::{self, Kind};
use super::routes::{self, Answer, Route};
use super::{Shared, documents};

const SECOND: u64 = 1_000_000_000;

/// How long an answer waits for the collector. What it adds to the loops is two numbers: that is worth less.
const WAIT: u64 = SECOND / 4;
const WAIT_FOR_LOOPS: u64 = SECOND / 40;

/// How often who follows is told of loops and blocks, and of what is collected.
const OFTEN: u64 = SECOND;
const SELDOM: u64 = 2 * SECOND;

/// How long, and how much, is read from a client that was told everything, so that it gets to read that: a connection
/// that is closed with bytes unread is reset.
const DRAIN: u64 = SECOND;
const DRAINED: usize = 64 * 1024;

enum State {
    /// Its request comes.
    Asking(Vec<u8>),
    /// Python is asked.
    Waiting { kind: Kind, ticket: u64, until: u64 },
    /// It is told its answer.
    Telling,
    /// It is told again and again.
    Following(Following),
    /// It was told everything.
    Draining { read: usize },
}

struct Following {
    /// Blocks that had ended when it was told of them last.
    seen: u64,
    /// When it is told of loops again, and when Python is asked again.
    next_loops: u64,
    next_collected: u64,
    asked: Option<Asked>,
}

struct Asked {
    tasks: u64,
    gauges: u64,
    until: u64,
}

impl Asked {
    fn is_answered(&self) -> bool {
        collector::since(Kind::Tasks, self.tasks) && collector::since(Kind::Gauges, self.gauges)
    }
}

/// A connection is over, and is closed.
pub struct Over;

/// A connection and what it is about.
pub struct Connection {
    pub socket: Socket,
    pub by_port: bool,
    trusted: bool,
    state: State,
    /// When it has kept us waiting for too long.
    deadline: u64,
    out: Vec<u8>,
    sent: usize,
}

impl Connection {
    pub fn new(socket: Socket, by_port: bool, trusted: bool, now: u64, shared: &Shared) -> Self {
        Self {
            socket,
            by_port,
            trusted,
            state: State::Asking(Vec::new()),
            deadline: now + shared.patience,
            out: Vec::new(),
            sent: 0,
        }
    }

    /// Whether it may be closed to make room.
    pub fn gives_way(&self) -> bool {
        !matches!(self.state, State::Following(_))
    }

    /// What it waits for.
    pub fn interest(&self) -> Interest {
        match self.state {
            State::Asking(_) | State::Draining { .. } => Interest::READ,
            State::Waiting { .. } => Interest::NONE,
            State::Following(_) if self.out.is_empty() => Interest::READ,
            State::Telling | State::Following(_) => Interest::WRITE,
        }
    }

    /// When to look at it again, whatever happens.
    pub fn wakes_at(&self) -> u64 {
        match &self.state {
            State::Waiting { until, .. } => *until,
            State::Following(following) if self.out.is_empty() => {
                let until = following
                    .asked
                    .as_ref()
                    .map_or(u64::MAX, |asked| asked.until);
                until
                    .min(following.next_loops)
                    .min(following.next_collected)
            }
            _ => self.deadline,
        }
    }

    /// Time has passed, or the collector has found something.
    pub fn tick(&mut self, now: u64, shared: &Shared) -> Result<(), Over> {
        match &self.state {
            State::Waiting {
                kind,
                ticket,
                until,
            } => {
                if now >= *until || collector::since(*kind, *ticket) {
                    let answer = routes::collected(shared, *kind);
                    return self.tell(answer, now, shared);
                }
                Ok(())
            }
            State::Following(_) if self.out.is_empty() => self.follow(now, shared),
            _ if now >= self.deadline => Err(Over),
            _ => Ok(()),
        }
    }

    /// Its socket is ready for what it waited for.
    pub fn ready(&mut self, now: u64, shared: &Shared) -> Result<(), Over> {
        match self.state {
            State::Asking(_) => self.read(now, shared),
            State::Draining { .. } => self.drain(),
            // Whoever follows has nothing more to say.
            State::Following(_) if self.out.is_empty() => self.drain(),
            State::Telling | State::Following(_) => self.flush(now, shared),
            State::Waiting { .. } => Ok(()),
        }
    }

    fn read(&mut self, now: u64, shared: &Shared) -> Result<(), Over> {
        let State::Asking(head) = &mut self.state else {
            return Ok(());
        };
        // One byte more than there may be, so that it is seen to be too much.
        let mut room = [0; http::MOST + 1];
        let free = http::MOST + 1 - head.len();
        match self.socket.recv(&mut room[..free]) {
            Ok(0) => return Err(Over),
            Ok(count) => head.extend_from_slice(&room[..count]),
            Err(error) if socket::would_block(&error) => return Ok(()),
            Err(_) => return Err(Over),
        }
        let door = if self.by_port {
            let port = super::locked(&shared.web).port.unwrap_or(0);
            Door::Port {
                port,
                token: &shared.token,
            }
        } else {
            Door::Local {
                trusted: self.trusted,
            }
        };
        let route = match http::parse(head) {
            Ok(None) => return Ok(()),
            Ok(Some(request)) => request
                .admitted(door)
                .map(|()| routes::route(shared, &request, self.by_port)),
            Err(refusal) => Err(refusal),
        };
        self.go(route, now, shared)
    }

    fn go(&mut self, route: Result<Route, Refusal>, now: u64, shared: &Shared) -> Result<(), Over> {
        match route {
            Ok(Route::Now(answer)) => self.tell(answer, now, shared),
            Err(refusal) => self.tell(Answer::refused(refusal), now, shared),
            Ok(Route::Later(kind)) => {
                let wait = match kind {
                    Kind::Loops => WAIT_FOR_LOOPS,
                    _ => WAIT,
                };
                self.state = State::Waiting {
                    kind,
                    ticket: collector::ask(kind),
                    until: now + wait,
                };
                Ok(())
            }
            Ok(Route::Events) => {
                self.state = State::Following(Following {
                    seen: 0,
                    next_loops: now,
                    next_collected: now,
                    asked: None,
                });
                let head = http::head(200, "text/event-stream", None, &policy(shared));
                self.say(head.into_bytes(), now, shared)
            }
        }
    }

    fn tell(&mut self, answer: Answer, now: u64, shared: &Shared) -> Result<(), Over> {
        let length = Some(answer.body.len());
        let head = http::head(answer.status, answer.kind, length, &policy(shared));
        let mut out = head.into_bytes();
        out.extend_from_slice(&answer.body);
        self.state = State::Telling;
        self.say(out, now, shared)
    }

    /// Sends this next: nothing is left of what was sent before.
    fn say(&mut self, out: Vec<u8>, now: u64, shared: &Shared) -> Result<(), Over> {
        self.out = out;
        self.sent = 0;
        self.deadline = now + shared.patience;
        self.flush(now, shared)
    }

    fn flush(&mut self, now: u64, shared: &Shared) -> Result<(), Over> {
        while self.sent < self.out.len() {
            match self.socket.send(&self.out[self.sent..]) {
                Ok(count) => {
                    self.sent += count;
                    self.deadline = now + shared.patience;
                }
                Err(error) if socket::would_block(&error) => return Ok(()),
                Err(_) => return Err(Over),
            }
        }
        self.out = Vec::new();
        if matches!(self.state, State::Telling) {
            self.socket.shutdown_write().map_err(|_| Over)?;
            self.state = State::Draining { read: 0 };
            self.deadline = now + DRAIN.min(shared.patience);
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Over> {
        let mut room = [0; 4096];
        loop {
            match self.socket.recv(&mut room) {
                Ok(0) => return Err(Over),
                Ok(count) => {
                    if let State::Draining { read } = &mut self.state {
                        *read += count;
                        if *read > DRAINED {
                            return Err(Over);
                        }
                    }
                }
                Err(error) if socket::would_block(&error) => return Ok(()),
                Err(_) => return Err(Over),
            }
        }
    }

    fn follow(&mut self, now: u64, shared: &Shared) -> Result<(), Over> {
        let State::Following(following) = &mut self.state else {
            return Ok(());
        };
        let mut out = String::new();
        if now >= following.next_loops {
            following.next_loops = now + OFTEN;
            // For the next time.
            collector::ask(Kind::Loops);
            event(&mut out, "loops", &documents::loops(shared));
            let (blocks, seen) = documents::blocks(following.seen);
            following.seen = seen;
            event(&mut out, "blocks", &blocks);
        }
        if let Some(asked) = &following.asked
            && (now >= asked.until || asked.is_answered())
        {
            following.asked = None;
            event(&mut out, "tasks", &documents::collected(Kind::Tasks));
            event(&mut out, "gauges", &documents::collected(Kind::Gauges));
        }
        if now >= following.next_collected {
            following.next_collected = now + SELDOM;
            following.asked = Some(Asked {
                tasks: collector::ask(Kind::Tasks),
                gauges: collector::ask(Kind::Gauges),
                until: now + WAIT,
            });
        }
        if out.is_empty() {
            return Ok(());
        }
        self.say(out.into_bytes(), now, shared)
    }
}

/// An event of `text/event-stream` (HTML, "Server-sent events"). Our JSON has no line breaks.
fn event(out: &mut String, name: &str, json: &str) {
    for part in ["event: ", name, "\ndata: ", json, "\n\n"] {
        out.push_str(part);
    }
}

/// What a page from here may do: run its own script, and ask here.
fn policy(shared: &Shared) -> String {
    let nonce = &shared.nonce;
    format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}
