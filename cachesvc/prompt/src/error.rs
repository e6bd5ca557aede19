//! What can be wrong with a request or with a model directory, and how a request's error is answered.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// Why a request was refused. Every message says what to change.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The body is not JSON, or a number in it is too large to be one.
    #[error("the body is not valid JSON{}: {source}", in_param(param))]
    Json {
        /// Where reading stopped, when it is inside a field.
        param: Option<String>,
        /// The parser's reason, with line and column.
        source: serde_json::Error,
    },
    /// A field has another type than the API gives it.
    #[error("`{param}` is not what the API expects: {source}")]
    WrongType {
        /// The field, such as `messages[0].role`.
        param: String,
        /// What was found and what was expected.
        source: serde_json::Error,
    },
    /// A field that must be there is not.
    #[error("`{param}` is missing; every request to this endpoint needs it")]
    Missing {
        /// The field.
        param: String,
    },
    /// A field is there but holds nothing.
    #[error("`{param}` is empty; give it at least one element or character")]
    Empty {
        /// The field.
        param: String,
    },
    /// A number is outside its range.
    #[error("`{param}` is {value}; it must be {range}")]
    OutOfRange {
        /// The field.
        param: &'static str,
        /// What was asked.
        value: f64,
        /// What is allowed.
        range: &'static str,
    },
    /// More elements, characters or bytes than a field takes.
    #[error("`{param}` holds {found} {unit}; at most {limit} are taken")]
    TooLarge {
        /// The field.
        param: &'static str,
        /// How many there are.
        found: usize,
        /// How many are allowed.
        limit: usize,
        /// What is counted.
        unit: &'static str,
    },
    /// The API has it and this server does not. Never ignored in silence.
    #[error("`{param}` is not supported here: {advice}")]
    Unsupported {
        /// The field.
        param: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
    /// No such model on this server.
    #[error("the model `{model}` is not served here; served: {}", served.join(", "))]
    UnknownModel {
        /// The model asked for.
        model: String,
        /// The models there are.
        served: Vec<String>,
    },
    /// Prompt and completion do not fit into the model's context.
    #[error(
        "the model's context is {context_tokens} tokens; this request has {prompt_tokens} in the prompt{}; \
         shorten the prompt or ask for fewer tokens",
        and_completion(*completion_tokens)
    )]
    ContextLength {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens asked for, when the request says.
        completion_tokens: Option<usize>,
        /// Tokens the model takes, prompt and completion together.
        context_tokens: usize,
    },
    /// A prompt of token ids holds one that the model does not have.
    #[error("`prompt` holds the token {token}, but the model's tokens are 0 to {}", vocab.saturating_sub(1))]
    UnknownToken {
        /// The token.
        token: u32,
        /// How many tokens the model has.
        vocab: usize,
    },
    /// The model came without a chat template.
    #[error("this model has no chat template; send the prompt to /v1/completions, or serve a chat model")]
    NoTemplate,
    /// The chat template did not take the messages.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer failed on the text. A fault of the tokenizer file.
    #[error("the model's tokenizer failed on this text: {source}")]
    Tokenizer {
        /// The tokenizer's reason.
        source: tokenizers::Error,
    },
}

impl RequestError {
    /// The HTTP status to answer with.
    pub fn status(&self) -> u16 {
        match self {
            Self::UnknownModel { .. } => 404,
            Self::Tokenizer { .. } => 500,
            _ => 400,
        }
    }

    /// The field to blame, as `error.param` of the answer.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::Json { param, .. } => param.as_deref(),
            Self::WrongType { param, .. } | Self::Missing { param } | Self::Empty { param } => Some(param),
            Self::OutOfRange { param, .. }
            | Self::TooLarge { param, .. }
            | Self::Unsupported { param, .. } => Some(param),
            Self::UnknownModel { .. } => Some("model"),
            Self::UnknownToken { .. } => Some("prompt"),
            Self::NoTemplate | Self::Template(_) => Some("messages"),
            Self::ContextLength { .. } | Self::Tokenizer { .. } => None,
        }
    }

    /// `error.code` of the answer, for programs.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::UnknownModel { .. } => Some("model_not_found"),
            Self::ContextLength { .. } => Some("context_length_exceeded"),
            Self::Unsupported { .. } => Some("unsupported_parameter"),
            Self::NoTemplate => Some("no_chat_template"),
            _ => None,
        }
    }

    /// The body to answer with.
    pub fn body(&self) -> ErrorBody {
        let kind = if self.status() >= 500 { "server_error" } else { "invalid_request_error" };
        ErrorBody::new(kind, self.to_string()).param(self.param()).code(self.code())
    }
}

fn in_param(param: &Option<String>) -> String {
    param.as_ref().map_or_else(String::new, |param| format!(" (in `{param}`)"))
}

fn and_completion(tokens: Option<usize>) -> String {
    tokens.map_or_else(String::new, |tokens| format!(" and asks for {tokens} more"))
}

/// An error as the OpenAI API shapes it: `{"error": {"message", "type", "param", "code"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// The only field.
    pub error: ErrorDetail,
}

/// The inside of an [`ErrorBody`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorDetail {
    /// For people.
    pub message: String,
    /// The class, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field to blame, if it is one.
    pub param: Option<String>,
    /// For programs, if there is one.
    pub code: Option<&'static str>,
}

impl ErrorBody {
    /// An error of this class, with no field and no code.
    pub fn new(kind: &'static str, message: String) -> Self {
        Self { error: ErrorDetail { message, kind, param: None, code: None } }
    }

    /// The same, blaming a field.
    pub fn param(mut self, param: Option<&str>) -> Self {
        self.error.param = param.map(str::to_owned);
        self
    }

    /// The same, with a code.
    pub fn code(mut self, code: Option<&'static str>) -> Self {
        self.error.code = code;
        self
    }
}

/// Why a chat template gave no text.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template itself refused the messages, for instance for the order of their roles.
    #[error("the model's chat template refuses these messages: {reason}")]
    Refused {
        /// The template's words.
        reason: String,
    },
    /// The template ran for too long.
    #[error(
        "the model's chat template takes more than {steps_max} steps on these messages; send fewer messages"
    )]
    TooLong {
        /// The limit.
        steps_max: u64,
    },
    /// The template wrote too much.
    #[error("the model's chat template makes more than {bytes_max} bytes of these messages; send less text")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// The template has a fault, or does not expect messages like these.
    #[error("the model's chat template fails on these messages: {}", one_line(source))]
    Failed {
        /// The engine's reason, with the line in the template.
        source: minijinja::Error,
    },
}

fn one_line(error: &impl fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Why a model directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read {}: {source}; is this a complete Hugging Face model directory?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is larger than any real one.
    #[error("{} has {bytes} bytes; at most {bytes_max} are taken", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The file is not the JSON it should be.
    #[error("{} is damaged or of an unknown form: {source}; download it again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        source: serde_json::Error,
    },
    /// `tokenizer.json` does not describe a tokenizer.
    #[error("{} is not a tokenizer this program knows: {source}; download it again", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The tokenizer library's reason.
        source: tokenizers::Error,
    },
    /// A special token is named in the configuration and absent from the vocabulary.
    #[error(
        "{} names `{token}` as its {name}, and tokenizer.json has no such token; the files do not belong together",
        path.display()
    )]
    UnknownSpecial {
        /// The configuration.
        path: PathBuf,
        /// `bos_token` or `eos_token`.
        name: &'static str,
        /// The token's text.
        token: String,
    },
    /// The chat template does not parse.
    #[error("the chat template in {} does not parse: {source}", path.display())]
    Template {
        /// The file it came from.
        path: PathBuf,
        /// The parser's reason, with the line.
        source: Box<minijinja::Error>,
    },
}
