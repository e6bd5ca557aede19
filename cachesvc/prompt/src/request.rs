//! A chat or completion request, parsed and checked: what a [`Request`] holds is within its limits.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::RequestError;

mod check;
mod wire;

/// How many stop strings a request may have, as the API defines it.
pub const STOPS_MAX: usize = 4;
/// The length of a stop string in bytes. While one may still be completed, its text is held back.
pub const STOP_BYTES_MAX: usize = 512;
/// How many messages a conversation may have.
pub const MESSAGES_MAX: usize = 16_384;
/// The tokens of a completion that does not say how many, as the API defines it. A chat that does not
/// say gets what the context has room for.
pub const COMPLETION_TOKENS_DEFAULT: usize = 16;

/// Which endpoint a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

/// A request to generate text.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The name of the model asked for. Check it with [`Request::check_model`].
    pub model: String,
    /// What to continue.
    pub input: Input,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// How many tokens to generate at most, when the request says. See [`Request::completion_tokens`].
    pub completion_tokens_max: Option<usize>,
    /// Texts that end the completion and are not part of it. At most [`STOPS_MAX`], none empty.
    pub stop: Vec<String>,
    /// Whether the end-of-sequence token is generated over, as load tests want it.
    pub ignore_eos: bool,
    /// Whether tokens are sent as they come.
    pub streaming: Streaming,
    /// Requests with different salts never share cached blocks.
    pub cache_salt: Option<String>,
}

/// What to continue.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A conversation, for the model's chat template.
    Chat {
        /// At least one.
        messages: Vec<Message>,
        /// Further variables for the template, such as `enable_thinking`. Scalars only.
        template_vars: Map<String, Value>,
    },
    /// A text to tokenize as it is.
    Text(String),
    /// Tokens, used as they are. At least one.
    Tokens(Vec<u32>),
}

/// A message of a conversation, in the form that chat templates expect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said. Text parts are joined by newlines.
    pub content: String,
    /// A name for the speaker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Calls that the assistant made in this message.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool's message answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

/// Who speaks in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions of the operator.
    System,
    /// The newer name of the same.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a call.
    Tool,
}

/// A call of a function by the assistant, in an earlier message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// What the tool's message refers to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, when it is there.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What was called.
    pub function: ToolFunction,
}

/// A called function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolFunction {
    /// Its name.
    pub name: String,
    /// Its arguments as JSON text, the way the API carries them.
    #[serde(default)]
    pub arguments: String,
}

/// How the next token is chosen. What the request leaves open is `None`: the model's own defaults decide.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sampling {
    /// In [0, 2]; 0 picks the most likely token always.
    pub temperature: Option<f32>,
    /// In (0, 1]: the smallest set of tokens that reaches this probability is kept.
    pub top_p: Option<f32>,
    /// How many of the most likely tokens are kept; 0 keeps all.
    pub top_k: Option<usize>,
    /// In [0, 1]: tokens less likely than this share of the most likely one are dropped.
    pub min_p: Option<f32>,
    /// Equal seeds give equal tokens.
    pub seed: Option<u64>,
    /// In [-2, 2].
    pub presence_penalty: f32,
    /// In [-2, 2].
    pub frequency_penalty: f32,
}

/// Whether tokens are sent as they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streaming {
    /// One reply at the end.
    Off,
    /// A chunk for each piece of text.
    On {
        /// Whether a last chunk carries the usage.
        usage: bool,
    },
}

impl Request {
    /// Parses and checks a body. Fields that are not known are left alone, as OpenAI's servers do;
    /// those that are known and not supported are refused when they ask for something.
    ///
    /// # Errors
    /// What is wrong, with the field to blame: see [`RequestError`].
    pub fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Self, RequestError> {
        let mut reader = serde_json::Deserializer::from_slice(body);
        let wire: wire::Request = serde_path_to_error::deserialize(&mut reader).map_err(read_error)?;
        reader.end().map_err(|source| RequestError::Json { param: None, source })?;
        check::request(endpoint, wire)
    }

    /// Refuses a model that is not among those served.
    ///
    /// # Errors
    /// [`RequestError::UnknownModel`], which lists the models there are.
    pub fn check_model(&self, served: &[String]) -> Result<(), RequestError> {
        if served.contains(&self.model) {
            return Ok(());
        }
        Err(RequestError::UnknownModel { model: self.model.clone(), served: served.to_vec() })
    }

    /// How many tokens to generate at most, for a prompt of `prompt_tokens` in a context of `context_tokens`.
    ///
    /// # Errors
    /// [`RequestError::ContextLength`] when the context has no room for what is asked.
    pub fn completion_tokens(
        &self,
        prompt_tokens: usize,
        context_tokens: usize,
    ) -> Result<usize, RequestError> {
        let room = context_tokens.saturating_sub(prompt_tokens);
        let asked = self.completion_tokens_max;
        if room == 0 || asked.is_some_and(|asked| asked > room) {
            return Err(RequestError::ContextLength {
                prompt_tokens,
                completion_tokens: asked,
                context_tokens,
            });
        }
        Ok(asked.unwrap_or(match self.input {
            Input::Chat { .. } => room,
            Input::Text(_) | Input::Tokens(_) => room.min(COMPLETION_TOKENS_DEFAULT),
        }))
    }
}

/// Tells damage of the JSON from a field of the wrong type.
fn read_error(error: serde_path_to_error::Error<serde_json::Error>) -> RequestError {
    let path = error.path().to_string();
    // A single dot stands for the body itself.
    let param = (path != ".").then_some(path);
    let source = error.into_inner();
    match param {
        Some(param) if source.is_data() => RequestError::WrongType { param, source },
        param => RequestError::Json { param, source },
    }
}

#[cfg(test)]
mod tests;
