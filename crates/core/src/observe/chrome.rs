//! Events of a loop as a Chrome trace ("Trace Event Format", JSON object form), which Perfetto and `chrome://tracing` open.
//!
//! A loop has a track with everything that it did, one slice after the other, and each of its tasks one with its steps,
//! named for its coroutine. Times are microseconds since the clock's origin.

use std::collections::HashMap;
use std::fmt::Write;

use super::ring::{Event, Kind};

/// What has run, by its number in the events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Label {
    /// The name of a function or a type.
    pub what: String,
    /// Empty: not known.
    pub file: String,
    pub line: u32,
}

const LOOP: u64 = 1;
const TASKS: u64 = 16;

/// A trace that is written.
#[derive(Debug)]
pub struct Chrome {
    out: String,
    pid: u32,
    /// The track of the loop whose events are written.
    of_loop: u64,
    /// The track of each of its tasks.
    tracks: HashMap<u64, u64>,
    made: u64,
}

impl Chrome {
    /// A trace of a process.
    #[must_use]
    pub fn new(pid: u32, name: &str) -> Self {
        let mut writer = Self {
            out: String::from("{\"displayTimeUnit\":\"ns\",\"traceEvents\":["),
            pid,
            of_loop: 0,
            tracks: HashMap::new(),
            made: 0,
        };
        writer.meta("process_name", LOOP, name);
        writer
    }

    /// Adds a loop: its name, its events, the oldest first, until `now`, and what they call what ran.
    pub fn add(&mut self, name: &str, events: &[Event], labels: &[Label], now: u64) {
        self.of_loop = match self.of_loop {
            0 => LOOP,
            _ => self.next_track(),
        };
        self.tracks.clear();
        self.meta("thread_name", self.of_loop, name);
        let mut open: Option<Event> = None;
        for &event in events {
            match event.kind {
                Kind::Timer => self.instant("timer", event.at, "late_ns", event.id),
                Kind::Block => self.instant("blocked", event.at, "for_ns", event.id),
                _ => {
                    if let Some(before) = open.replace(event) {
                        self.span(labels, &before, event.at);
                    }
                }
            }
        }
        if let Some(last) = open {
            self.span(labels, &last, now.max(last.at));
        }
    }

    /// The document.
    #[must_use]
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.out.push_str("\n]}\n");
        self.out.into_bytes()
    }

    fn next_track(&mut self) -> u64 {
        self.made += 1;
        TASKS + self.made
    }

    fn separate(&mut self) {
        let is_first = self.out.ends_with('[');
        self.out.push_str(if is_first { "\n" } else { ",\n" });
    }

    /// Writes what cannot fail: to a string.
    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        self.out.write_fmt(text).unwrap_or_default();
    }

    fn meta(&mut self, what: &str, tid: u64, name: &str) {
        self.separate();
        let pid = self.pid;
        self.put(format_args!(
            "{{\"ph\":\"M\",\"name\":\"{what}\",\"pid\":{pid},\"tid\":{tid},\"args\":{{\"name\":"
        ));
        self.text(name);
        self.out.push_str("}}");
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' | '\\' => {
                    self.out.push('\\');
                    self.out.push(character);
                }
                '\0'..='\x1f' => self.put(format_args!("\\u{:04x}", u32::from(character))),
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }

    /// A time in microseconds with all of its nanoseconds.
    fn time(&mut self, ns: u64) {
        self.put(format_args!("{}.{:03}", ns / 1_000, ns % 1_000));
    }

    fn slice(&mut self, tid: u64, name: &str, label: Option<&Label>, began: u64, ended: u64) {
        self.separate();
        self.out.push_str("{\"ph\":\"X\",\"name\":");
        self.text(name);
        let pid = self.pid;
        self.put(format_args!(",\"pid\":{pid},\"tid\":{tid},\"ts\":"));
        self.time(began);
        self.out.push_str(",\"dur\":");
        self.time(ended.saturating_sub(began));
        if let Some(label) = label.filter(|label| !label.file.is_empty()) {
            self.out.push_str(",\"args\":{\"file\":");
            self.text(&label.file);
            self.put(format_args!(",\"line\":{}}}", label.line));
        }
        self.out.push('}');
    }

    fn instant(&mut self, name: &str, at: u64, key: &str, value: u64) {
        self.separate();
        let (pid, of_loop) = (self.pid, self.of_loop);
        self.put(format_args!(
            "{{\"ph\":\"i\",\"s\":\"t\",\"name\":\"{name}\",\"pid\":{pid},\"tid\":{of_loop},\"ts\":"
        ));
        self.time(at);
        self.put(format_args!(",\"args\":{{\"{key}\":{value}}}}}"));
    }

    /// What began with an event and was over at `ended`.
    fn span(&mut self, labels: &[Label], event: &Event, ended: u64) {
        let of_loop = self.of_loop;
        let label = labels.get(event.label as usize);
        let what = label.map_or("?", |label| label.what.as_str());
        match event.kind {
            Kind::Step => {
                self.slice(of_loop, what, label, event.at, ended);
                let track = self.track(event.id, what);
                self.slice(track, "step", label, event.at, ended);
            }
            Kind::Call => self.slice(of_loop, what, label, event.at, ended),
            Kind::Delivery => self.slice(of_loop, "delivery", None, event.at, ended),
            Kind::Poll => self.slice(of_loop, "poll", None, event.at, ended),
            Kind::Wait => self.slice(of_loop, "wait", None, event.at, ended),
            _ => {}
        }
    }

    fn track(&mut self, id: u64, what: &str) -> u64 {
        if let Some(&track) = self.tracks.get(&id) {
            return track;
        }
        let track = self.next_track();
        self.tracks.insert(id, track);
        let name = format!("{what} #{}", self.made);
        self.meta("thread_name", track, &name);
        track
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at: u64, kind: Kind, id: u64, label: u32) -> Event {
        Event {
            at,
            kind,
            id,
            label,
        }
    }

    #[test]
    fn each_task_has_a_track_and_the_loop_one_of_all() {
        let label = |what: &str, file: &str| Label {
            what: what.to_owned(),
            file: file.to_owned(),
            line: 7,
        };
        let labels = [label("", ""), label("f\"", "a\\b.py"), label("int", "")];
        let events = [
            event(1_000, Kind::Step, 0xabc, 1),
            event(2_000, Kind::Call, 0, 2),
            event(2_100, Kind::Timer, 42, 0),
            event(3_000, Kind::Step, 0xabc, 1),
            event(4_500, Kind::Step, 0xabd, 1),
            event(5_000, Kind::Wait, 0, 0),
        ];
        let mut chrome = Chrome::new(9, "main");
        chrome.add("event loop", &events, &labels, 6_000);
        let text = String::from_utf8(chrome.into_bytes()).unwrap();
        let lines: Vec<&str> = text
            .lines()
            .map(|line| line.trim_end_matches(','))
            .collect();
        assert_eq!(
            lines[3],
            r#"{"ph":"X","name":"f\"","pid":9,"tid":1,"ts":1.000,"dur":1.000,"args":{"file":"a\\b.py","line":7}}"#
        );
        let named = |name: &str| lines.iter().filter(|line| line.contains(name)).count();
        assert_eq!((named("#1\""), named("#2\"")), (1, 1));
        let on = |tid: u32| format!("\"name\":\"step\",\"pid\":9,\"tid\":{tid}");
        assert_eq!((named(&on(17)), named(&on(18))), (2, 1));
        assert!(text.contains(r#""name":"wait","pid":9,"tid":1,"ts":5.000,"dur":1.000"#));
        assert!(text.contains(r#""args":{"late_ns":42}"#));
        assert!(text.ends_with("\n]}\n"));
    }

    #[test]
    fn tracks_of_several_loops_are_told_apart() {
        let events = [event(1, Kind::Step, 0xabc, 0), event(2, Kind::Wait, 0, 0)];
        let mut chrome = Chrome::new(9, "main");
        chrome.add("one", &events, &[], 3);
        chrome.add("two", &events, &[], 3);
        let text = String::from_utf8(chrome.into_bytes()).unwrap();
        for (name, tid) in [("one", 1), ("? #1", 17), ("two", 18), ("? #3", 19)] {
            let meta = format!(r#""pid":9,"tid":{tid},"args":{{"name":"{name}"}}"#);
            assert!(text.contains(&meta), "{meta} in {text}");
        }
        assert_eq!(text.matches(r#""name":"wait""#).count(), 2);
    }
}
