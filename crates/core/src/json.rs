//! Writing JSON (RFC 8259) to a string, value by value.
//!
//! The writer puts the commas; whoever writes closes what it opens. A number that JSON does not have, infinite or
//! none, is `null`.

use std::fmt::Write;

/// A text that grows.
#[derive(Debug, Default)]
pub struct Json {
    text: String,
    /// Whether the next value follows another one in the same array or object.
    follows: bool,
}

impl Json {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What was written.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }

    fn part(&mut self) {
        if self.follows {
            self.text.push(',');
        }
        self.follows = true;
    }

    fn put(&mut self, value: impl std::fmt::Display) {
        self.part();
        // Writing to a string does not fail.
        write!(self.text, "{value}").ok();
    }

    fn enclosed(&mut self, ends: [char; 2], inside: impl FnOnce(&mut Self)) {
        self.part();
        self.text.push(ends[0]);
        self.follows = false;
        inside(self);
        self.text.push(ends[1]);
        self.follows = true;
    }

    /// An object, whose members `inside` writes.
    pub fn object(&mut self, inside: impl FnOnce(&mut Self)) {
        self.enclosed(['{', '}'], inside);
    }

    /// An array, whose elements `inside` writes.
    pub fn array(&mut self, inside: impl FnOnce(&mut Self)) {
        self.enclosed(['[', ']'], inside);
    }

    /// The name of a member; its value is written next.
    pub fn key(&mut self, name: &str) -> &mut Self {
        self.string(name);
        self.text.push(':');
        self.follows = false;
        self
    }

    pub fn null(&mut self) {
        self.put("null");
    }

    pub fn bool(&mut self, value: bool) {
        self.put(value);
    }

    pub fn integer(&mut self, value: u64) {
        self.put(value);
    }

    pub fn number(&mut self, value: f64) {
        if value.is_finite() {
            self.put(value);
        } else {
            self.null();
        }
    }

    /// Nanoseconds, as seconds.
    pub fn seconds(&mut self, nanoseconds: u64) {
        self.number(nanoseconds as f64 / 1e9);
    }

    pub fn string(&mut self, value: &str) {
        self.part();
        self.text.push('"');
        for letter in value.chars() {
            match letter {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                letter if letter < ' ' => {
                    write!(self.text, "\\u{:04x}", u32::from(letter)).ok();
                }
                letter => self.text.push(letter),
            }
        }
        self.text.push('"');
    }

    /// A string, or null in the place of an empty one.
    pub fn text_or_null(&mut self, value: &str) {
        match value {
            "" => self.null(),
            value => self.string(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_parted_and_nested() {
        let mut json = Json::new();
        json.object(|json| {
            json.key("a").integer(1);
            json.key("b").array(|json| {
                json.null();
                json.bool(true);
                json.object(|_| {});
                json.array(|_| {});
                json.seconds(1_500_000_000);
            });
            json.key("c").text_or_null("");
            json.key("d").text_or_null("x");
        });
        assert_eq!(
            json.into_text(),
            r#"{"a":1,"b":[null,true,{},[],1.5],"c":null,"d":"x"}"#
        );
    }

    #[test]
    fn what_json_does_not_have_is_escaped_or_null() {
        let mut json = Json::new();
        json.array(|json| {
            json.string("\"\\\n\u{1}é\u{1f600}");
            json.number(f64::NAN);
            json.number(f64::INFINITY);
            json.number(1e300);
        });
        let text = json.into_text();
        assert!(
            text.starts_with("[\"\\\"\\\\\\n\\u0001é\u{1f600}\",null,null,1"),
            "{text}"
        );
    }
}
