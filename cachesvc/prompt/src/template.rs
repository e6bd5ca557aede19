//! A model's chat template: from messages to the text that the model was trained to continue.
//!
//! Templates are written for Jinja as Hugging Face sets it up, and come with the model: they are run
//! with a bound on their steps and on what they write. They get the date only if they cannot do without:
//! the same messages should give the same text every day, or their blocks would not be found again.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;

use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use self::dialect::Raised;
use crate::error::{LoadError, TemplateError};
use crate::request::{Message, Role};

mod dialect;

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
    dated: bool,
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
        let dated = dialect::asks_for_date(source);
        dialect::add_to(&mut env, dated);
        env.add_template_owned(NAME, dialect::without_generation_blocks(source))
            .map_err(|error| LoadError::Template { path: origin.to_owned(), source: Box::new(error) })?;
        Ok(Self { env, specials: specials.clone(), knows_developer: source.contains("developer"), dated })
    }

    /// Whether the template writes the date into its text, so that no block outlives the day, in UTC.
    pub fn is_dated(&self) -> bool {
        self.dated
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

#[cfg(test)]
mod tests;
