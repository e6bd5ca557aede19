//! Tokenizer and chat template of one model: from a request to the tokens of its prompt.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{LoadError, RequestError};
use crate::file;
use crate::request::{Input, Request, Sampling};
use crate::template::ChatTemplate;
use crate::tokenizer::{Specials, Tokenizer};

/// What turns requests for one model into tokens. Shared freely between threads.
#[derive(Debug)]
pub struct Prompt {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    defaults: SamplingDefaults,
}

impl Prompt {
    /// Reads tokenizer, chat template and sampling defaults of a Hugging Face model directory:
    /// `tokenizer.json`, and where they are there `tokenizer_config.json`, `special_tokens_map.json`,
    /// `chat_template.jinja` and `generation_config.json`. A model without a chat template serves
    /// completions only.
    ///
    /// # Errors
    /// A file is missing, damaged, or disagrees with another: see [`LoadError`].
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let tokenizer = Tokenizer::load(dir)?;
        let template = match template_source(dir)? {
            Some((path, source)) => Some(ChatTemplate::parse(&source, tokenizer.special_names(), &path)?),
            None => None,
        };
        let defaults = file::read_json(&dir.join("generation_config.json"))?;
        Ok(Self { tokenizer, template, defaults })
    }

    /// The tokens of a request's prompt, special ones included. The same for the same request in every
    /// process. Blocks for the time it takes, about a second for the longest bodies.
    ///
    /// # Errors
    /// The template does not take the messages, or a token is unknown: see [`RequestError`].
    pub fn tokens(&self, request: &Request) -> Result<Vec<u32>, RequestError> {
        match &request.input {
            Input::Chat { messages, template_vars } => {
                let template = self.template.as_ref().ok_or(RequestError::NoTemplate)?;
                let text = template.render(messages, template_vars)?;
                self.tokenizer.encode(&text, Specials::InText)
            }
            Input::Text(text) => self.tokenizer.encode(text, Specials::Added),
            Input::Tokens(tokens) => {
                let vocab = self.tokenizer.vocab_size();
                match tokens.iter().find(|&&token| token as usize >= vocab) {
                    Some(&token) => Err(RequestError::UnknownToken { token, vocab }),
                    None => Ok(tokens.clone()),
                }
            }
        }
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether chats can be served.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Whether the date is part of every chat's prompt, so that no block outlives the day, in UTC.
    pub fn is_dated(&self) -> bool {
        self.template.as_ref().is_some_and(ChatTemplate::is_dated)
    }

    /// What the model's authors recommend for requests that leave it open.
    pub fn sampling_defaults(&self) -> &SamplingDefaults {
        &self.defaults
    }
}

/// The sampling settings of `generation_config.json`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SamplingDefaults {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
}

impl SamplingDefaults {
    /// The request's settings, with what it leaves open filled in.
    pub fn fill(&self, sampling: Sampling) -> Sampling {
        Sampling {
            temperature: sampling.temperature.or(self.temperature),
            top_p: sampling.top_p.or(self.top_p),
            top_k: sampling.top_k.or(self.top_k),
            min_p: sampling.min_p.or(self.min_p),
            ..sampling
        }
    }
}

/// The chat template's text with the file it came from. A file of its own wins over the one inside
/// `tokenizer_config.json`.
fn template_source(dir: &Path) -> Result<Option<(PathBuf, String)>, LoadError> {
    let path = dir.join("chat_template.jinja");
    if let Some(bytes) = file::read(&path)? {
        return match String::from_utf8(bytes) {
            Ok(source) => Ok(Some((path, source))),
            Err(_) => Err(LoadError::Read { path, source: std::io::ErrorKind::InvalidData.into() }),
        };
    }
    let path = dir.join("tokenizer_config.json");
    let config: TemplateConfig = file::read_json(&path)?;
    Ok(config.chat_template.and_then(TemplateField::default_source).map(|source| (path, source)))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TemplateConfig {
    chat_template: Option<TemplateField>,
}

/// One template, or several by name.
#[derive(Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl TemplateField {
    fn default_source(self) -> Option<String> {
        match self {
            Self::One(source) => Some(source),
            Self::Named(templates) => {
                templates.into_iter().find(|template| template.name == "default").map(|t| t.template)
            }
        }
    }
}

#[cfg(test)]
mod tests;
