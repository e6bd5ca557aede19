//! The requests as they are on the wire. Types only; what the values may be is for `check`.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{Role, STOPS_MAX, ToolCall};

/// The fields of both endpoints that mean something here, in one place.
#[derive(Deserialize)]
pub(super) struct Request {
    pub(super) model: Option<String>,
    pub(super) messages: Option<Vec<Message>>,
    pub(super) prompt: Option<Prompt>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) max_tokens: Option<i64>,
    pub(super) max_completion_tokens: Option<i64>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<i64>,
    pub(super) min_p: Option<f64>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
    pub(super) repetition_penalty: Option<f64>,
    pub(super) n: Option<i64>,
    pub(super) best_of: Option<i64>,
    pub(super) seed: Option<i64>,
    pub(super) stop: Option<Stop>,
    pub(super) ignore_eos: Option<bool>,
    pub(super) echo: Option<bool>,
    pub(super) suffix: Option<String>,
    pub(super) logprobs: Option<Asked>,
    pub(super) top_logprobs: Option<Asked>,
    pub(super) logit_bias: Option<Asked>,
    pub(super) tools: Option<Asked>,
    pub(super) functions: Option<Asked>,
    pub(super) response_format: Option<ResponseFormat>,
    pub(super) chat_template_kwargs: Option<Map<String, Value>>,
    pub(super) cache_salt: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: Option<bool>,
}

#[derive(Deserialize)]
pub(super) struct ResponseFormat {
    #[serde(rename = "type")]
    pub(super) kind: String,
}

#[derive(Deserialize)]
pub(super) struct Message {
    pub(super) role: Role,
    pub(super) content: Option<Content>,
    pub(super) name: Option<String>,
    pub(super) tool_calls: Option<Vec<ToolCall>>,
    pub(super) tool_call_id: Option<String>,
}

/// The content of a message: a text, or text parts.
pub(super) struct Content(pub(super) String);

/// What to continue: a text, a list of one text, or a list of tokens.
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// One stop string or several.
pub(super) struct Stop(pub(super) Vec<String>);

/// Whether a field asks for something.
#[derive(PartialEq, Eq)]
pub(super) enum Asked {
    /// `false`, or an empty list or object.
    Nothing,
    /// The number 0, which asks for nothing in some fields only.
    Zero,
    /// Anything else.
    Something,
}

impl Asked {
    fn when(asked: bool) -> Self {
        if asked { Self::Something } else { Self::Nothing }
    }

    fn number(is_zero: bool) -> Self {
        if is_zero { Self::Zero } else { Self::Something }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor;

        #[derive(Deserialize)]
        struct Part {
            #[serde(rename = "type")]
            kind: String,
            text: Option<String>,
        }

        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of text parts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content(text.to_owned()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Content, E> {
                Ok(Content(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content, A::Error> {
                let mut content: Option<String> = None;
                while let Some(part) = parts.next_element::<Part>()? {
                    if part.kind != "text" {
                        let kind = part.kind;
                        return Err(Error::custom(format_args!(
                            "a part of type `{kind}` was sent, and this model takes text only"
                        )));
                    }
                    let text = part.text.ok_or_else(|| Error::missing_field("text"))?;
                    match &mut content {
                        None => content = Some(text),
                        Some(content) => {
                            content.push('\n');
                            content.push_str(&text);
                        }
                    }
                }
                Ok(Content(content.unwrap_or_default()))
            }
        }

        deserializer.deserialize_any(ContentVisitor)
    }
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PromptVisitor;

        impl<'de> Visitor<'de> for PromptVisitor {
            type Value = Prompt;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a list of one string, or a list of token ids")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt::Text(text.to_owned()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Prompt, E> {
                Ok(Prompt::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompt, A::Error> {
                let mut tokens = match list.next_element::<PromptElement>()? {
                    None => return Ok(Prompt::Tokens(vec![])),
                    Some(PromptElement::Token(token)) => vec![token],
                    Some(PromptElement::Prompt(prompt)) => {
                        return match list.next_element::<IgnoredAny>()? {
                            None => Ok(prompt),
                            Some(_) => Err(Error::custom(
                                "several prompts in one request are not supported; send one each",
                            )),
                        };
                    }
                };
                while let Some(token) = list.next_element::<u32>()? {
                    tokens.push(token);
                }
                Ok(Prompt::Tokens(tokens))
            }
        }

        deserializer.deserialize_any(PromptVisitor)
    }
}

/// The first element of a prompt that is a list: a token of it, or a whole prompt.
enum PromptElement {
    Token(u32),
    Prompt(Prompt),
}

impl<'de> Deserialize<'de> for PromptElement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ElementVisitor;

        impl<'de> Visitor<'de> for ElementVisitor {
            type Value = PromptElement;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a token id")
            }

            fn visit_u64<E: Error>(self, token: u64) -> Result<PromptElement, E> {
                u32::try_from(token)
                    .map(PromptElement::Token)
                    .map_err(|_| E::custom(format_args!("{token} is too large for a token id")))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<PromptElement, E> {
                Ok(PromptElement::Prompt(Prompt::Text(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<PromptElement, A::Error> {
                let mut tokens = vec![];
                while let Some(token) = list.next_element::<u32>()? {
                    tokens.push(token);
                }
                Ok(PromptElement::Prompt(Prompt::Tokens(tokens)))
            }
        }

        deserializer.deserialize_any(ElementVisitor)
    }
}

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StopVisitor;

        impl<'de> Visitor<'de> for StopVisitor {
            type Value = Stop;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a string or a list of at most {STOPS_MAX} strings")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Stop, E> {
                Ok(Stop(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Stop, A::Error> {
                let mut stops = vec![];
                while let Some(stop) = list.next_element::<String>()? {
                    if stops.len() == STOPS_MAX {
                        return Err(Error::invalid_length(STOPS_MAX + 1, &self));
                    }
                    stops.push(stop);
                }
                Ok(Stop(stops))
            }
        }

        deserializer.deserialize_any(StopVisitor)
    }
}

impl<'de> Deserialize<'de> for Asked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AskedVisitor;

        impl<'de> Visitor<'de> for AskedVisitor {
            type Value = Asked;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a boolean, a number, a list or an object")
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Asked, E> {
                Ok(Asked::when(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Asked, E> {
                Ok(Asked::number(value == 0))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Asked, E> {
                Ok(Asked::number(value == 0))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Asked, A::Error> {
                let mut asked = false;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    asked = true;
                }
                Ok(Asked::when(asked))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Asked, A::Error> {
                let mut asked = false;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    asked = true;
                }
                Ok(Asked::when(asked))
            }
        }

        deserializer.deserialize_any(AskedVisitor)
    }
}
