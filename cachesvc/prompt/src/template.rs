//! A model's chat template: from messages to the text that the model was trained to continue.
//!
//! Templates are written for Jinja as Hugging Face sets it up, and come with the model: they are run
//! with a bound on their steps and on what they write. They get no clock: the same messages give the
//! same text in every process and on every day, or their blocks would never be found again.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde::Serialize as _;

use crate::error::{LoadError, TemplateError};
use crate::request::{Message, Role};

/// Steps of the template engine for one conversation: a hundred or so for each message of the longest
/// one taken, and about a second in all.
const STEPS_MAX: u64 = 10_000_000;
/// What one conversation may become, in bytes.
const OUTPUT_BYTES_MAX: usize = 32 << 20;
/// Depth of nested calls, within the stack of a worker thread.
const DEPTH_MAX: usize = 64;
const NAME: &str = "chat_template";

/// A parsed chat template.
pub struct ChatTemplate {
    env: Environment<'static>,
    specials: BTreeMap<&'static str, String>,
    knows_developer: bool,
}

impl ChatTemplate {
    /// Parses a template. `origin` is the file it came from, for errors; `specials` are the special
    /// tokens by their role, such as `bos_token`.
    ///
    /// # Errors
    /// [`LoadError::Template`] names the line that does not parse.
    pub fn parse(
        source: &str,
        specials: &BTreeMap<&'static str, String>,
        origin: &Path,
    ) -> Result<Self, LoadError> {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_fuel(Some(STEPS_MAX));
        env.set_recursion_limit(DEPTH_MAX);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_formatter(write_as_python);
        env.add_filter("tojson", to_json);
        env.add_function("raise_exception", raise_exception);
        env.add_template_owned(NAME, source.to_owned())
            .map_err(|error| LoadError::Template { path: origin.to_owned(), source: Box::new(error) })?;
        Ok(Self { env, specials: specials.clone(), knows_developer: source.contains("developer") })
    }

    /// The text for these messages, up to where the assistant's answer begins. Blocks while the template
    /// runs, for at most about a second.
    ///
    /// # Errors
    /// The template refuses the messages, fails on them, or takes too much: see [`TemplateError`].
    pub fn render(
        &self,
        messages: &[Message],
        vars: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, TemplateError> {
        let mut context: BTreeMap<&str, Value> =
            vars.iter().map(|(name, value)| (name.as_str(), Value::from_serialize(value))).collect();
        context.extend(self.specials.iter().map(|(name, text)| (*name, Value::from(text.as_str()))));
        context.insert("messages", messages.iter().map(|message| self.message(message)).collect());
        context.insert("add_generation_prompt", Value::from(true));
        // Templates ask for these with `is none` as often as with `is defined`.
        context.insert("tools", Value::from(()));
        context.insert("documents", Value::from(()));

        let template = self.env.get_template(NAME).map_err(|source| TemplateError::Failed { source })?;
        let mut output = Bounded::default();
        let rendered = template.render_captured_to(context, &mut output).map(drop);
        if output.full {
            return Err(TemplateError::TooLarge { bytes_max: OUTPUT_BYTES_MAX });
        }
        rendered.map_err(render_error)?;
        Ok(String::from_utf8_lossy(&output.bytes).into_owned())
    }

    /// A message in the form templates expect: arguments of calls as objects, and the older name of the
    /// developer's role where the template does not know the newer.
    fn message(&self, message: &Message) -> Value {
        let mut fields: BTreeMap<&str, Value> = BTreeMap::new();
        let role = match message.role {
            Role::Developer if !self.knows_developer => Role::System,
            role => role,
        };
        fields.insert("role", Value::from_serialize(role));
        fields.insert("content", Value::from(message.content.as_str()));
        if let Some(name) = &message.name {
            fields.insert("name", Value::from(name.as_str()));
        }
        if let Some(id) = &message.tool_call_id {
            fields.insert("tool_call_id", Value::from(id.as_str()));
        }
        if !message.tool_calls.is_empty() {
            let calls = message.tool_calls.iter().map(|call| {
                let mut value = serde_json::json!(call);
                let arguments = &mut value["function"]["arguments"];
                if let Ok(object @ serde_json::Value::Object(_)) =
                    serde_json::from_str(&call.function.arguments)
                {
                    *arguments = object;
                }
                Value::from_serialize(value)
            });
            fields.insert("tool_calls", calls.collect());
        }
        Value::from_serialize(fields)
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("specials", &self.specials).finish_non_exhaustive()
    }
}

/// What the template wrote, up to [`OUTPUT_BYTES_MAX`].
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT_BYTES_MAX {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template said with `raise_exception`, to tell it from a fault of the template.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(reason: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "the template raised an exception")
        .with_source(Raised(reason)))
}

fn render_error(error: Error) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::TooLong { steps_max: STEPS_MAX };
    }
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        if let Some(Raised(reason)) = inner.downcast_ref() {
            return TemplateError::Refused { reason: reason.clone() };
        }
        if inner.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::TooLong { steps_max: STEPS_MAX };
        }
        cause = inner.source();
    }
    TemplateError::Failed { source: error }
}

/// Writes a value as Python would print it, where that differs.
fn write_as_python(
    out: &mut minijinja::Output<'_>,
    state: &minijinja::State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(text).map_err(Error::from)
}

/// `tojson` as Hugging Face defines it: Python's spacing, nothing escaped for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let mut json = Vec::new();
    let written = match indent {
        // An absurd width would be memory for spaces.
        Some(width) if width > INDENT_MAX => {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the indent is too wide"));
        }
        Some(width) => {
            let indent = " ".repeat(width);
            let style = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, style))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, PythonSpacing)),
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, "tojson failed").with_source(error))?;
    Ok(String::from_utf8_lossy(&json).into_owned())
}

/// The widest indent of a template's JSON, in spaces.
const INDENT_MAX: usize = 16;

/// A space after each comma and colon.
struct PythonSpacing;

impl serde_json::ser::Formatter for PythonSpacing {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests;
