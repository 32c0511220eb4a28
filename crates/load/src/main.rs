//! `tideloop-load`: a closed-loop client, of echo and HTTP servers, for measuring servers written in Python.
//!
//! A Python client saturates before the server does, so the lab drives its servers of sockets with
//! this one. Each connection keeps one request in flight: it sends some bytes, reads the answer,
//! compares every byte, notes the time, and goes again. A closed loop slows down with its server and so
//! hides stalls (coordinated omission); its latencies describe a saturated server and nothing else.
//!
//! It talks to loopback addresses and UNIX sockets only.
#![forbid(unsafe_code)]

mod args;
mod bulk;
mod connection;
mod datagrams;
mod drive;
mod http;
mod readiness;
mod report;
mod serve;
mod target;
#[cfg(feature = "tls")]
mod tls;

use std::process::ExitCode;

fn main() -> ExitCode {
    let options = match args::parse(std::env::args().skip(1)) {
        Ok(args::Parsed::Run(options)) => options,
        Ok(args::Parsed::Serve(asked)) => return ended(serve::run(&asked)),
        Ok(args::Parsed::Help) => {
            print!("{}", args::HELP);
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("tideloop-load: {message}");
            return ExitCode::from(2);
        }
    };
    ended(drive::run(&options).map(|measured| print!("{}", report::render(&options, &measured))))
}

fn ended(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tideloop-load: {error}");
            ExitCode::FAILURE
        }
    }
}
