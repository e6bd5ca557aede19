//! The replies of the OpenAI API.

use hearth_prompt::Endpoint;
use serde::Serialize;

use super::Face;
use crate::request::GenUsage;

/// What every reply to one request has in common.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) endpoint: Endpoint,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) system_fingerprint: String,
}

/// A whole completion, or a chunk of one.
#[derive(Debug, Serialize)]
pub(super) struct Reply<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<Choice<'a>>,
    #[serde(skip_serializing_if = "UsageField::is_left_out")]
    usage: UsageField,
}

/// Chunks that come before the usage say `null` when it was asked for, and nothing otherwise.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum UsageField {
    LeftOut,
    Later(()),
    Now(Usage),
}

impl UsageField {
    fn is_left_out(&self) -> bool {
        matches!(self, Self::LeftOut)
    }
}

#[derive(Debug, Serialize)]
struct Choice<'a> {
    index: u32,
    #[serde(flatten)]
    content: Content<'a>,
    logprobs: (),
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Content<'a> {
    Message(Message<'a>),
    Delta(Delta<'a>),
    Text(&'a str),
}

#[derive(Debug, Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: (),
}

#[derive(Debug, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// Tokens of a request, with where the KV of its prompt came from.
#[derive(Debug, Serialize)]
pub(super) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
    hearth: HearthUsage,
}

#[derive(Debug, Serialize)]
struct PromptTokensDetails {
    cached_tokens: usize,
}

#[derive(Debug, Serialize)]
struct HearthUsage {
    computed_tokens: usize,
    loaded_tokens: LoadedByTier,
}

#[derive(Debug, Serialize)]
struct LoadedByTier {
    engine: usize,
    pinned: usize,
    nvme: usize,
}

impl From<GenUsage> for Usage {
    fn from(usage: GenUsage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: usage.loaded.total() },
            hearth: HearthUsage {
                computed_tokens: usage.computed_tokens,
                loaded_tokens: LoadedByTier {
                    engine: usage.loaded.engine,
                    pinned: usage.loaded.pinned,
                    nvme: usage.loaded.nvme,
                },
            },
        }
    }
}

impl Head {
    /// The reply of a request that is not streamed.
    pub(super) fn whole<'a>(
        &'a self,
        text: &'a str,
        finish_reason: &'static str,
        usage: GenUsage,
    ) -> Reply<'a> {
        let (object, content) = match self.endpoint {
            Endpoint::Chat => {
                let message = Message { role: "assistant", content: text, refusal: () };
                ("chat.completion", Content::Message(message))
            }
            Endpoint::Completions => ("text_completion", Content::Text(text)),
        };
        let choices = vec![choice(content, Some(finish_reason))];
        self.reply(object, choices, UsageField::Now(usage.into()))
    }

    /// The chunk that opens a chat's stream; a completion's has none.
    pub(super) fn opening(&self, usage: UsageField) -> Option<Reply<'_>> {
        let delta = Delta { role: Some("assistant"), content: Some("") };
        (self.endpoint == Endpoint::Chat)
            .then(|| self.reply(self.chunk_object(), vec![choice(Content::Delta(delta), None)], usage))
    }

    /// A chunk of text, the last one with its reason.
    pub(super) fn chunk<'a>(
        &'a self,
        text: &'a str,
        finish_reason: Option<&'static str>,
        usage: UsageField,
    ) -> Reply<'a> {
        let content = match self.endpoint {
            Endpoint::Chat => {
                Content::Delta(Delta { role: None, content: (!text.is_empty()).then_some(text) })
            }
            Endpoint::Completions => Content::Text(text),
        };
        self.reply(self.chunk_object(), vec![choice(content, finish_reason)], usage)
    }

    /// The chunk after the last, which carries the usage.
    pub(super) fn usage_chunk(&self, usage: GenUsage) -> Reply<'_> {
        self.reply(self.chunk_object(), vec![], UsageField::Now(usage.into()))
    }

    fn chunk_object(&self) -> &'static str {
        match self.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completions => "text_completion",
        }
    }

    fn reply<'a>(&'a self, object: &'static str, choices: Vec<Choice<'a>>, usage: UsageField) -> Reply<'a> {
        Reply {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.system_fingerprint,
            choices,
            usage,
        }
    }
}

fn choice<'a>(content: Content<'a>, finish_reason: Option<&'static str>) -> Choice<'a> {
    Choice { index: 0, content, logprobs: (), finish_reason }
}

/// `/v1/models`
#[derive(Debug, Serialize)]
pub(super) struct ModelList {
    pub(super) object: &'static str,
    pub(super) data: Vec<Model>,
}

/// `/v1/models/{id}`
#[derive(Debug, Serialize)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Not of the API, but what vLLM calls it too: tokens of prompt and completion together.
    max_model_len: usize,
}

impl Model {
    pub(super) fn new(name: &str, face: &Face) -> Self {
        Self {
            id: name.to_owned(),
            object: "model",
            created: face.config.started_unix_seconds,
            owned_by: "hearth",
            max_model_len: face.context_tokens_max(),
        }
    }
}
