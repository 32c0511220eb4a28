//! Events of a loop as a Chrome trace ("Trace Event Format", JSON object form), which Perfetto and `chrome://tracing` open.
//!
//! A loop has a track with everything that it did, one slice after the other, and collections of garbage within them. Each of
//! its tasks has one with its steps, named for its coroutine, and in front of a step, if it had to wait behind others, that it was
//! ready. An arrow leads to a step from what ran on the loop when it became ready: what has woken the task, or made it.
//! Times are microseconds since the clock's origin.
//!
//! An event ends what began with the one before it. What is told of a step while it runs or behind it is kept until
//! then ([`Open`]), and put within its bounds: it may have been timed by another clock.
use std::collections::HashMap;
use std::fmt::Write;

use super::ring::{ENDED, Event, Kind};

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
    /// Each task of it that has not ended.
    tracks: HashMap<u64, Track>,
    /// What it did: from when until when, and its name.
    done: Vec<(u64, u64, String)>,
    made: u64,
    arrows: u64,
}

/// The track of a task.
#[derive(Debug, Clone, Copy)]
struct Track {
    tid: u64,
    number: u64,
    is_named: bool,
    /// When its last step has ended.
    until: u64,
}

/// What runs, and what was told of it.
#[derive(Debug)]
struct Open {
    event: Event,
    told: Vec<Event>,
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
            done: Vec::new(),
            made: 0,
            arrows: 0,
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
        self.done.clear();
        self.meta("thread_name", self.of_loop, name);
        let mut open: Option<Open> = None;
        let mut last = 0;
        for &event in events {
            match event.kind {
                kind if !kind.lasts() => {
                    if let Some(open) = &mut open {
                        open.told.push(event);
                    }
                }
                _ => {
                    // The clock may go back a little.
                    last = event.at.max(last);
                    let next = Open {
                        event: Event { at: last, ..event },
                        told: Vec::new(),
                    };
                    if let Some(before) = open.replace(next) {
                        self.span(labels, &before, last);
                    }
                }
            }
        }
        if let Some(last) = open {
            let told = last.told.iter().map(|event| event.at);
            let until = told.fold(last.event.at, u64::max).max(now);
            self.span(labels, &last, until);
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

    /// A slice, without its end: what else is said of it follows.
    fn slice(&mut self, tid: u64, name: &str, began: u64, ended: u64) {
        self.separate();
        self.out.push_str("{\"ph\":\"X\",\"name\":");
        self.text(name);
        let pid = self.pid;
        self.put(format_args!(",\"pid\":{pid},\"tid\":{tid},\"ts\":"));
        self.time(began);
        self.out.push_str(",\"dur\":");
        self.time(ended.saturating_sub(began));
    }

    /// The end of a slice: where its function is.
    fn place(&mut self, label: Option<&Label>) {
        if let Some(label) = label.filter(|label| !label.file.is_empty()) {
            self.out.push_str(",\"args\":{\"file\":");
            self.text(&label.file);
            self.put(format_args!(",\"line\":{}}}", label.line));
        }
        self.out.push('}');
    }

    /// One end of the last arrow.
    fn arrow(&mut self, end: char, tid: u64, at: u64) {
        self.separate();
        let (pid, id) = (self.pid, self.arrows);
        let binds = if end == 'f' { ",\"bp\":\"e\"" } else { "" };
        self.put(format_args!(
            "{{\"ph\":\"{end}\",\"name\":\"wakes\",\"cat\":\"wakes\",\"id\":{id}{binds},\"pid\":{pid},\"tid\":{tid},\"ts\":"
        ));
        self.time(at);
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

    /// What has run until `ended`.
    fn span(&mut self, labels: &[Label], open: &Open, ended: u64) {
        let event = &open.event;
        let ended = ended.max(event.at);
        let label = labels.get(event.label as usize);
        let what = match event.kind {
            Kind::Step | Kind::Call => label.map_or("?", |label| label.what.as_str()),
            Kind::Delivery => "delivery",
            Kind::Poll => "poll",
            Kind::Wait => "wait",
            // It rests.
            _ => return self.told(open, ended),
        };
        let label = label.filter(|_| matches!(event.kind, Kind::Step | Kind::Call));
        self.slice(self.of_loop, what, event.at, ended);
        self.place(label);
        if event.kind == Kind::Step {
            self.step(label, what, open, ended);
        }
        self.told(open, ended);
        self.done.push((event.at, ended, what.to_owned()));
    }

    /// The same of a task's step, on its track.
    fn step(&mut self, label: Option<&Label>, what: &str, open: &Open, ended: u64) {
        let event = &open.event;
        let mut track = self.track(event.id);
        if !track.is_named {
            track.is_named = true;
            self.meta(
                "thread_name",
                track.tid,
                &format!("{what} #{}", track.number),
            );
        }
        let is_ready = |told: &&Event| told.kind == Kind::Ready && told.id == event.id;
        let ready = open.told.iter().find(is_ready);
        if let Some(ready) = ready {
            self.ready(track, ready.at, event.at);
        }
        self.slice(track.tid, "step", event.at, ended);
        self.place(label);
        track.until = ended;
        match ready.is_some_and(|ready| ready.label == ENDED) {
            true => self.tracks.remove(&event.id),
            false => self.tracks.insert(event.id, track),
        };
    }

    /// A task was ready from `came` until it took a step.
    fn ready(&mut self, track: Track, came: u64, until: u64) {
        // What has woken it was over at that time, or not yet.
        let waker = self.done.partition_point(|&(_, ended, _)| ended < came);
        let waker = self.done.get(waker);
        // Or it is not known any more.
        let waker = waker.filter(|&&(began, ended, _)| began <= came && began < ended);
        let woken = waker.map(|&(_, ended, _)| came.min(ended - 1));
        if came.max(track.until) < until {
            let by = waker.map(|(.., what)| what.clone());
            self.slice(track.tid, "ready", came.max(track.until), until);
            if let Some(by) = by {
                self.out.push_str(",\"args\":{\"by\":");
                self.text(&by);
                self.out.push('}');
            }
            self.out.push('}');
        }
        // One that has woken itself needs no arrow. An arrow begins within what has woken the task, which may be over by then.
        if let Some(woken) = woken
            && came >= track.until
        {
            self.arrows += 1;
            self.arrow('s', self.of_loop, woken);
            self.arrow('f', track.tid, until);
        }
    }

    /// What was told of what has run, within its bounds.
    fn told(&mut self, open: &Open, ended: u64) {
        let mut collects = None;
        for told in &open.told {
            let at = told.at.clamp(open.event.at, ended);
            match told.kind {
                Kind::Spawn => {
                    // Whoever was called so before is another one.
                    self.tracks.remove(&told.id);
                    let number = self.track(told.id).number;
                    self.instant("spawn", at, "task", number);
                }
                Kind::Timer => self.instant("timer", at, "late_ns", told.id),
                Kind::Block => self.instant("blocked", at, "for_ns", told.id),
                Kind::Collect => collects = Some(at),
                Kind::Collected => {
                    // Its beginning may be older than what is known.
                    let began = collects.take().unwrap_or(open.event.at);
                    self.slice(self.of_loop, "gc", began, at);
                    self.out.push('}');
                }
                _ => {}
            }
        }
        if let Some(began) = collects {
            self.slice(self.of_loop, "gc", began, ended);
            self.out.push('}');
        }
    }

    fn track(&mut self, id: u64) -> Track {
        if let Some(&track) = self.tracks.get(&id) {
            return track;
        }
        let tid = self.next_track();
        let track = Track {
            tid,
            number: self.made,
            is_named: false,
            until: 0,
        };
        self.tracks.insert(id, track);
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
            event(3_000, Kind::Ready, 0xabc, ENDED),
            event(4_500, Kind::Step, 0xabc, 1),
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

    fn lines_of(events: &[Event], now: u64) -> Vec<String> {
        let mut chrome = Chrome::new(9, "main");
        let label = Label {
            what: "f".to_owned(),
            ..Label::default()
        };
        chrome.add("event loop", events, &[Label::default(), label], now);
        let text = String::from_utf8(chrome.into_bytes()).unwrap();
        text.lines()
            .map(|line| line.trim_end_matches(',').to_owned())
            .collect()
    }

    #[test]
    fn who_was_woken_has_an_arrow_from_what_ran_then() {
        let lines = lines_of(
            &[
                event(1_000, Kind::Step, 0xa, 1),
                event(1_000, Kind::Spawn, 0xb, 0),
                event(2_000, Kind::Call, 0, 0),
                event(3_000, Kind::Step, 0xb, 1),
                event(1_900, Kind::Ready, 0xb, 0),
                event(4_000, Kind::Wait, 0, 0),
            ],
            5_000,
        );
        let has = |line: &str| {
            assert!(
                lines.iter().any(|each| each == line),
                "{line} in {lines:#?}"
            )
        };
        has(r#"{"ph":"i","s":"t","name":"spawn","pid":9,"tid":1,"ts":1.000,"args":{"task":2}}"#);
        has(r#"{"ph":"M","name":"thread_name","pid":9,"tid":18,"args":{"name":"f #2"}}"#);
        has(
            r#"{"ph":"X","name":"ready","pid":9,"tid":18,"ts":1.900,"dur":1.100,"args":{"by":"f"}}"#,
        );
        has(r#"{"ph":"s","name":"wakes","cat":"wakes","id":1,"pid":9,"tid":1,"ts":1.900}"#);
        has(
            r#"{"ph":"f","name":"wakes","cat":"wakes","id":1,"bp":"e","pid":9,"tid":18,"ts":3.000}"#,
        );
    }

    #[test]
    fn who_wakes_itself_is_ready_behind_its_step_and_needs_no_arrow() {
        let lines = lines_of(
            &[
                event(1_000, Kind::Step, 0xa, 1),
                event(2_000, Kind::Poll, 0, 0),
                event(3_000, Kind::Step, 0xa, 1),
                event(1_900, Kind::Ready, 0xa, 0),
            ],
            4_000,
        );
        let ready = r#"{"ph":"X","name":"ready","pid":9,"tid":17,"ts":2.000,"dur":1.000,"args":{"by":"f"}}"#;
        assert!(lines.iter().any(|line| line == ready), "{lines:#?}");
        assert!(!lines.iter().any(|line| line.contains("wakes")));
    }

    #[test]
    fn collections_are_within_what_runs() {
        let lines = lines_of(
            &[
                event(1_000, Kind::Step, 0xa, 1),
                // By another clock.
                event(900, Kind::Collect, 0, 0),
                event(1_500, Kind::Collected, 0, 0),
                event(1_800, Kind::Collect, 0, 0),
                event(2_200, Kind::Collected, 0, 0),
                event(2_000, Kind::Wait, 0, 0),
                event(2_500, Kind::Collect, 0, 0),
            ],
            3_000,
        );
        let gc: Vec<_> = lines
            .iter()
            .filter(|line| line.contains("\"gc\""))
            .collect();
        let at = |ts: &str, dur: &str| {
            format!(r#"{{"ph":"X","name":"gc","pid":9,"tid":1,"ts":{ts},"dur":{dur}}}"#)
        };
        assert_eq!(
            gc,
            [
                &at("1.000", "0.500"),
                &at("1.800", "0.200"),
                &at("2.500", "0.500")
            ]
        );
    }

    #[test]
    fn a_clock_that_goes_back_makes_no_slices_overlap() {
        let lines = lines_of(
            &[
                event(2_000, Kind::Poll, 0, 0),
                event(1_990, Kind::Call, 0, 1),
                event(2_100, Kind::Poll, 0, 0),
            ],
            2_000,
        );
        assert!(lines.contains(
            &r#"{"ph":"X","name":"f","pid":9,"tid":1,"ts":2.000,"dur":0.100}"#.to_owned()
        ));
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
