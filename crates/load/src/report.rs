//! What was measured, as text for people or one JSON object for the lab.

use std::fmt::Write;

use tideloop_core::histogram::Histogram;

use crate::args::{Exchange, Options};
use crate::drive::Measured;

const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p99_9", 0.999), ("max", 1.0)];

pub fn render(options: &Options, measured: &Measured) -> String {
    if options.json {
        json(options, measured)
    } else {
        text(options, measured)
    }
}

fn json(options: &Options, measured: &Measured) -> String {
    let mut out = format!(
        "{{\"connections\":{},{},\"requests\":{},\"seconds\":{:.6},\"requests_per_sec\":{:.1}",
        options.connections,
        match options.exchange {
            Exchange::Echo(size) => format!("\"size\":{size}"),
            Exchange::Bulk(size, times) => format!("\"size\":{size},\"times\":{times}"),
            Exchange::Http(pipelined) => format!("\"pipelined\":{pipelined}"),
        },
        measured.latency.count(),
        measured.wall.as_secs_f64(),
        rate(measured),
    );
    for (name, q) in QUANTILES {
        push(
            &mut out,
            format_args!(
                ",\"latency_{name}_us\":{:.3}",
                microseconds(&measured.latency, q)
            ),
        );
    }
    // [bucket index, count]; bounds are 2^(i/8) and 2^((i+1)/8) nanoseconds.
    let buckets: Vec<_> = measured
        .latency
        .buckets()
        .map(|(i, n)| format!("[{i},{n}]"))
        .collect();
    push(
        &mut out,
        format_args!(",\"latency_ns_buckets\":[{}]}}\n", buckets.join(",")),
    );
    out
}

fn text(options: &Options, measured: &Measured) -> String {
    let mut out = format!(
        "{} requests of {} on {} connections in {:.3} s: {:.0} requests/s\nlatency (closed loop)",
        measured.latency.count(),
        match options.exchange {
            Exchange::Echo(size) => format!("{size} B"),
            Exchange::Bulk(size, times) => format!("{size} B, {times} times back,"),
            Exchange::Http(pipelined) => format!("{pipelined} GET"),
        },
        options.connections,
        measured.wall.as_secs_f64(),
        rate(measured),
    );
    for (name, q) in QUANTILES {
        let name = name.replace('_', ".");
        push(
            &mut out,
            format_args!("  {name} {:.1} us", microseconds(&measured.latency, q)),
        );
    }
    out.push('\n');
    out
}

fn rate(measured: &Measured) -> f64 {
    measured.latency.count() as f64 / measured.wall.as_secs_f64().max(1e-9)
}

fn microseconds(latency: &Histogram, q: f64) -> f64 {
    latency.quantile(q).unwrap_or(0) as f64 / 1000.0
}

/// Writing to a `String` cannot fail.
fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Parsed, parse};
    use std::time::Duration;

    #[test]
    fn json_and_text_tell_the_same() {
        let Ok(Parsed::Run(options)) =
            parse("--port 7 --connections 3".split(' ').map(str::to_owned))
        else {
            panic!("not run")
        };
        let mut latency = Histogram::new();
        latency.record(2_000);
        latency.record(2_000_000);
        let measured = Measured {
            wall: Duration::from_millis(500),
            latency,
        };
        let text = text(&options, &measured);
        assert!(
            text.starts_with("2 requests of 1024 B on 3 connections in 0.500 s: 4 requests/s\n"),
            "{text}"
        );
        assert!(text.contains("max 2000.0 us"), "{text}");
        let json = json(&options, &measured);
        assert!(
            json.contains("\"requests\":2,\"seconds\":0.500000,\"requests_per_sec\":4.0"),
            "{json}"
        );
        assert!(json.contains("\"latency_max_us\":2000.000"), "{json}");
        assert!(json.trim_end().ends_with("]]}"), "{json}");
    }
}
