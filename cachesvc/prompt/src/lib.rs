//! From an OpenAI request to token ids, the same way in every process.
//!
//! The router and the engines must agree on the tokens of a prompt to the last one, or a block key
//! computed by the one names nothing in the other. So both link this crate and call
//! [`Prompt::tokens`]: parse, check, fill in the model's chat template, tokenize.
//!
//! It holds no tensors, opens no sockets and needs no async runtime. Everything in it blocks for as
//! long as the work takes; a server calls it from a thread that may.
//!
//! The types to know:
//! - [`Request`]: a chat or completion request, checked. [`Request::parse`] takes the body.
//! - [`RequestError`]: what is wrong with a request, with the status and the body to answer.
//! - [`Prompt`]: tokenizer and chat template of one model, from its Hugging Face directory.
//! - [`Tokenizer`]: text to tokens and back.

#![forbid(unsafe_code)]

mod error;
mod file;
mod prompt;
mod request;
mod template;
mod tokenizer;

pub use error::{ErrorBody, ErrorDetail, LoadError, RequestError, TemplateError};
pub use prompt::{Prompt, SamplingDefaults};
pub use request::{
    COMPLETION_TOKENS_DEFAULT, Endpoint, Input, MESSAGES_MAX, Message, Request, Role, STOP_BYTES_MAX,
    STOPS_MAX, Sampling, Streaming, ToolCall, ToolFunction,
};
pub use template::ChatTemplate;
pub use tokenizer::{Specials, Tokenizer};
