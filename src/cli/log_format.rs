//! Log lines on standard error as text, JSON or logfmt.
//!
//! A line is always one event, whatever clients send: control characters, line separators and characters that change
//! the direction of the text are escaped in all formats.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use clap::ValueEnum;
use env_logger::fmt::Formatter;
use log::kv::{Error, Key, Value, VisitSource, VisitValue};
use log::{LevelFilter, Record};

use crate::access::printable::is_trick;

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Text for terminals.
    #[default]
    Text,
    /// One JSON object in each line.
    Json,
    /// Fields as name=value.
    Logfmt,
}

/// Logs to standard error as `RUST_LOG` sets it. The logger itself ignores a failed write.
pub(super) fn log_to_stderr(format: LogFormat) {
    const DEFAULT: &str = "info";
    let given = std::env::var("RUST_LOG").unwrap_or_default();
    let filters = if given.is_empty() { DEFAULT } else { &given };
    // Checked first, since the logger would report errors with a macro that panics when standard error is closed.
    let checked = env_filter::Builder::new().try_parse(filters).map(drop);
    env_logger::Builder::new()
        .parse_filters(if checked.is_ok() { filters } else { DEFAULT })
        // tungstenite logs frames, and with them payloads and close reasons, whatever RUST_LOG is.
        .filter_module("tungstenite", LevelFilter::Warn)
        .format(move |formatter, record| write_line(format, formatter, record))
        .init();
    if let Err(why) = checked {
        log::warn!("RUST_LOG is ignored: {why}");
    }
}

fn write_line(format: LogFormat, formatter: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let time = formatter.timestamp_seconds().to_string();
    writeln!(formatter, "{}", line(format, &time, record))
}

/// One line, without its end.
fn line(format: LogFormat, time: &str, record: &Record<'_>) -> String {
    let message = record.args().to_string();
    let (level, target) = (record.level(), record.target());
    let mut line = Line { format, text: String::with_capacity(128) };
    match format {
        LogFormat::Text => {
            let _ = write!(line.text, "[{time} {level:<5} {target}] ");
            append_escaped(&mut line.text, &message, "");
        }
        LogFormat::Json | LogFormat::Logfmt => {
            line.string("time", time);
            line.string("level", &level.as_str().to_ascii_lowercase());
            line.string("target", target);
            line.string("message", &message);
        }
    }
    // The server's own fields can always be read.
    let _ = record.key_values().visit(&mut line);
    if format == LogFormat::Json {
        line.text.push('}');
    }
    line.text
}

/// A line that is being written.
struct Line {
    format: LogFormat,
    text: String,
}

impl Line {
    /// Appends a field whose value is written as it is: a number or a truth value.
    fn plain(&mut self, name: &str, value: impl std::fmt::Display) {
        self.name(name);
        let _ = write!(self.text, "{value}");
    }

    /// Appends a field with any text.
    fn string(&mut self, name: &str, value: &str) {
        self.name(name);
        let is_bare = |letter: char| {
            !letter.is_whitespace() && !matches!(letter, '"' | '=' | '\\') && !is_trick(letter)
        };
        if self.format != LogFormat::Json && !value.is_empty() && value.chars().all(is_bare) {
            self.text.push_str(value);
            return;
        }
        self.text.push('"');
        append_escaped(&mut self.text, value, "\"\\");
        self.text.push('"');
    }

    fn name(&mut self, name: &str) {
        let is_first = self.text.is_empty();
        let _ = match self.format {
            LogFormat::Json => write!(self.text, "{}\"{name}\":", if is_first { '{' } else { ',' }),
            LogFormat::Text | LogFormat::Logfmt => {
                write!(self.text, "{}{name}=", if is_first { "" } else { " " })
            }
        };
    }
}

/// Appends a text with these letters, and those that could end or change the line, escaped as in JSON.
fn append_escaped(out: &mut String, text: &str, escaped: &str) {
    for letter in text.chars() {
        if is_trick(letter) {
            let _ = write!(out, "\\u{:04x}", u32::from(letter));
        } else {
            if escaped.contains(letter) {
                out.push('\\');
            }
            out.push(letter);
        }
    }
}

impl<'kvs> VisitSource<'kvs> for Line {
    fn visit_pair(&mut self, name: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        value.visit(Field { name: name.as_str(), line: self })
    }
}

/// A field whose value is being read.
struct Field<'a> {
    name: &'a str,
    line: &'a mut Line,
}

impl<'v> VisitValue<'v> for Field<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), Error> {
        self.line.string(self.name, &value.to_string());
        Ok(())
    }

    /// A field without a value is left out.
    fn visit_null(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), Error> {
        self.line.plain(self.name, value);
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), Error> {
        self.line.plain(self.name, value);
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), Error> {
        self.line.plain(self.name, value);
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), Error> {
        self.line.string(self.name, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Level;

    /// One line in all formats.
    fn lines(message: &str, fields: &[(&str, Value<'_>)]) -> [String; 3] {
        [LogFormat::Text, LogFormat::Json, LogFormat::Logfmt].map(|format| {
            let mut record = Record::builder();
            let record = record.level(Level::Warn).target("oyez::x").key_values(&fields);
            line(format, "2026-01-02T03:04:05Z", &record.args(format_args!("{message}")).build())
        })
    }

    #[test]
    fn line_has_its_fields_in_each_format() {
        let fields = [
            ("peer", Value::from("127.0.0.1:1")),
            ("sub", Value::from("a \"b\"")),
            ("code", Value::from(4102_u16)),
        ];
        let [text, json, logfmt] = lines("close", &fields);
        assert_eq!(
            text,
            "[2026-01-02T03:04:05Z WARN  oyez::x] close peer=127.0.0.1:1 sub=\"a \\\"b\\\"\" code=4102"
        );
        assert_eq!(
            json,
            "{\"time\":\"2026-01-02T03:04:05Z\",\"level\":\"warn\",\"target\":\"oyez::x\",\"message\":\"close\",\
             \"peer\":\"127.0.0.1:1\",\"sub\":\"a \\\"b\\\"\",\"code\":4102}"
        );
        assert_eq!(
            logfmt,
            "time=2026-01-02T03:04:05Z level=warn target=oyez::x message=close peer=127.0.0.1:1 \
             sub=\"a \\\"b\\\"\" code=4102"
        );
    }

    #[test]
    fn text_of_a_client_cannot_end_or_forge_a_line() {
        let forged =
            "x\n[2026-01-01T00:00:00Z INFO  oyez] close\r\u{1b}[2K\u{2028}\u{202e}\0\u{85}\" reason=ok \\";
        for (message, value) in [(forged, "x"), ("close", forged)] {
            for line in lines(message, &[("agent", Value::from(value))]) {
                assert!(!line.chars().any(is_trick), "{line:?}");
            }
            let [_, json, _] = lines(message, &[("agent", Value::from(value))]);
            let object: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!((&object["message"], &object["agent"]), (&message.into(), &value.into()));
        }
        let [text, _, logfmt] =
            lines("close", &[("agent", Value::from("a reason=b")), ("reason", Value::from("c"))]);
        for line in [text, logfmt] {
            assert!(line.ends_with(" agent=\"a reason=b\" reason=c"), "{line}");
        }
    }

    #[test]
    fn field_without_a_value_is_left_out() {
        let none: Option<&str> = None;
        let value = log::kv::ToValue::to_value(&none);
        let [text, json, logfmt] = lines("close", &[("sub", value)]);
        assert!(
            text.ends_with("] close")
                && json.ends_with("\"message\":\"close\"}")
                && logfmt.ends_with("message=close")
        );
    }
}
