//! What chat templates expect beyond Jinja itself: Python's way of printing, the functions and filters that
//! Hugging Face adds, and one statement of theirs.

use std::io;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde::Serialize as _;

/// The widest indent of a template's JSON, in spaces. More would be memory for nothing.
const INDENT_MAX: usize = 16;
/// The name of the function that tells the date.
const DATE_FUNCTION: &str = "strftime_now";

/// Adds what templates expect. See [`asks_for_date`] for `dated`.
pub(super) fn add_to(env: &mut Environment<'_>, dated: bool) {
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(write_as_python);
    env.add_filter("tojson", to_json);
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env.add_function("raise_exception", raise_exception);
    if dated {
        env.add_function(DATE_FUNCTION, date);
    }
}

/// Whether a template calls for the date without asking whether there is one. Those that ask have a text of
/// their own for when there is none, which is better: it is the same every day.
pub(super) fn asks_for_date(source: &str) -> bool {
    source.contains(DATE_FUNCTION)
        && !source.contains("strftime_now is defined")
        && !source.contains("strftime_now is not defined")
}

/// Hugging Face marks what the assistant says with a `generation` block, for training. Here it is a block that
/// is always there.
pub(super) fn without_generation_blocks(source: &str) -> String {
    const BEGIN: &str = "{%";
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(begin) = rest.find(BEGIN) {
        let (before, tag) = rest.split_at(begin + BEGIN.len());
        plain.push_str(before);
        let word = tag.trim_start_matches(['-', '+']).trim_start();
        let name: &str = word.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        let replaced = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => name,
        };
        plain.push_str(&tag[..tag.len() - word.len()]);
        plain.push_str(replaced);
        rest = &word[name.len()..];
    }
    plain.push_str(rest);
    plain
}

/// What a template said with `raise_exception`, to tell it from a fault of the template.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

fn raise_exception(reason: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "the template raised an exception")
        .with_source(Raised(reason)))
}

/// The date in UTC, so that it changes everywhere at the same time.
fn date(format: &str) -> Result<String, Error> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, "strftime_now: no such format").with_source(error)
    })
}

/// Writes a value as Python would print it, where that differs.
fn write_as_python(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(text).map_err(Error::from)
}

/// `tojson` as Hugging Face defines it: Python's `json.dumps`, with nothing escaped for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    if indent.is_some_and(|width| width > INDENT_MAX) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the indent is too wide"));
    }
    let failed = |error| Error::new(ErrorKind::BadSerialization, "tojson failed").with_source(error);
    let mut json = serde_json::to_value(value).map_err(failed)?;
    if sorted {
        json.sort_all_objects();
    }
    let (comma, colon) = match separators.as_deref() {
        Some([comma, colon]) => (comma.as_str(), colon.as_str()),
        _ => (", ", ": "),
    };
    let mut text = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width);
            let style = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            json.serialize(&mut serde_json::Serializer::with_formatter(&mut text, style))
        }
        None => {
            let style = Separated { comma: comma.as_bytes(), colon: colon.as_bytes() };
            json.serialize(&mut serde_json::Serializer::with_formatter(&mut text, style))
        }
    };
    written.map_err(failed)?;
    let text = String::from_utf8_lossy(&text);
    Ok(if ascii { escape_to_ascii(&text) } else { text.into_owned() })
}

/// JSON with every other character as its UTF-16 escapes, as Python writes it. Such characters stand in
/// strings only.
fn escape_to_ascii(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    ascii
}

/// JSON on one line, with these between elements and after keys.
struct Separated<'a> {
    comma: &'a [u8],
    colon: &'a [u8],
}

impl serde_json::ser::Formatter for Separated<'_> {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.comma) }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.comma) }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.colon)
    }
}
