//! What is at which path.

use tideloop_core::http::{Refusal, Request};
use tideloop_core::json::Json;

use super::collector::{self, Kind};
use super::{Shared, documents, exposition};
use crate::observe::known;
use crate::observe::recorder::chrome_trace;

/// The answer to a request.
pub struct Answer {
    pub status: u16,
    pub kind: &'static str,
    pub body: Vec<u8>,
}

/// What a path leads to.
pub enum Route {
    Now(Answer),
    /// What the collector has to find first, or not in time.
    Later(Kind),
    /// A stream that does not end.
    Events,
}

const JSON: &str = "application/json";
const PAGE: &str = include_str!("page.html");

impl Answer {
    pub fn json(text: String) -> Self {
        Self {
            status: 200,
            kind: JSON,
            body: text.into_bytes(),
        }
    }

    pub fn refused(refusal: Refusal) -> Self {
        let mut json = Json::new();
        json.object(|json| json.key("error").string(refusal.reason));
        Self {
            status: refusal.status,
            ..Self::json(json.into_text())
        }
    }
}

/// Where a request that was admitted leads. `by_port`: it came by the port for browsers.
pub fn route(shared: &Shared, request: &Request<'_>, by_port: bool) -> Route {
    let now = match request.path {
        "/v1/loops" => return Route::Later(Kind::Loops),
        "/v1/tasks" => return Route::Later(Kind::Tasks),
        "/v1/gauges" => return Route::Later(Kind::Gauges),
        "/metrics" => return Route::Later(Kind::Samples),
        "/v1/events" => return Route::Events,
        "/v1/blocks" => Answer::json(documents::blocks(0).0),
        "/v1/record" => record(request).unwrap_or_else(Answer::refused),
        "/" if by_port => Answer {
            status: 200,
            kind: "text/html; charset=utf-8",
            body: PAGE.replace("{{nonce}}", &shared.nonce).into_bytes(),
        },
        // Who came by the port has the address already, and a page must not open ports.
        "/v1/web" if !by_port => web(shared),
        _ => Answer::refused(Refusal::new(404, "there is nothing at this path")),
    };
    Route::Now(now)
}

/// The answer to what had to be collected, from what was found last.
pub fn collected(shared: &Shared, kind: Kind) -> Answer {
    match kind {
        Kind::Loops => Answer::json(documents::loops(shared)),
        Kind::Tasks | Kind::Gauges => Answer::json(documents::collected(kind)),
        Kind::Samples => Answer {
            status: 200,
            kind: "text/plain; version=0.0.4; charset=utf-8",
            body: exposition::metrics(collector::latest(kind)),
        },
    }
}

/// What the flight recorders of the process have, of the last `seconds` if it says so.
fn record(request: &Request<'_>) -> Result<Answer, Refusal> {
    let seconds = match request.parameter("seconds").map(str::parse) {
        None => None,
        Some(Ok(seconds)) if seconds >= 0.0 => Some(seconds),
        Some(_) => {
            return Err(Refusal::new(
                400,
                "seconds: expected a number of at least 0",
            ));
        }
    };
    let mut loops = known::loops();
    loops.retain(|observed| observed.recorder.is_some());
    if loops.is_empty() {
        return Err(Refusal::new(404, "no loop of this process records"));
    }
    Ok(Answer {
        status: 200,
        kind: JSON,
        body: chrome_trace(&loops, seconds),
    })
}

/// Opens the port for browsers and says where it is.
fn web(shared: &Shared) -> Answer {
    let mut json = Json::new();
    match shared.open_web(0) {
        Ok(port) => json.object(|json| json.key("url").string(&shared.url(port))),
        Err(error) => {
            json.object(|json| json.key("error").string(&error.to_string()));
            return Answer {
                status: 500,
                ..Answer::json(json.into_text())
            };
        }
    }
    Answer::json(json.into_text())
}
