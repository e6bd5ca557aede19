//! One completion in the making: from the engine's events to text and an end. No I/O.

use std::sync::Arc;

use hearth_prompt::Prompt;

use super::error::ApiError;
use crate::request::{EngineError, FinishReason, GenEvent, GenUsage};
use crate::text::CompletionText;

/// Text and usage of one completion.
#[derive(Debug)]
pub(super) struct Completion {
    prompt: Arc<Prompt>,
    text: CompletionText,
    usage: GenUsage,
}

/// What an event made of a completion.
#[derive(Debug)]
pub(super) enum Progress {
    /// Text to send, maybe empty.
    Text(String),
    /// The last text, and why it is the last: `stop` or `length`. Read no further event.
    End { text: String, finish_reason: &'static str },
    /// It broke off. Read no further event.
    Failed(ApiError),
}

impl Completion {
    /// `stops` are the texts that end it.
    pub(super) fn new(prompt: Arc<Prompt>, stops: Vec<String>) -> Self {
        Self { prompt, text: CompletionText::new(stops), usage: GenUsage::default() }
    }

    /// What it took so far.
    pub(super) fn usage(&self) -> GenUsage {
        self.usage
    }

    /// Takes the next event; `None` stands for an engine that is gone.
    pub(super) fn apply(&mut self, event: Option<GenEvent>) -> Progress {
        let tokenizer = self.prompt.tokenizer();
        let decode = |tokens: &[u32]| tokenizer.decode(tokens);
        match event {
            Some(GenEvent::Prompt { usage }) => {
                self.usage = usage;
                Progress::Text(String::new())
            }
            Some(GenEvent::Token { id }) => {
                self.usage.completion_tokens += 1;
                let piece = self.text.push(id, decode);
                if piece.stopped {
                    return Progress::End { text: piece.text, finish_reason: "stop" };
                }
                Progress::Text(piece.text)
            }
            Some(GenEvent::Finished { reason: FinishReason::Cancelled, usage }) => {
                self.usage = usage;
                Progress::Failed(EngineError::ShuttingDown.into())
            }
            Some(GenEvent::Finished { reason, usage }) => {
                self.usage = usage;
                let rest = self.text.finish(decode);
                let finish_reason = match reason {
                    FinishReason::Length if !rest.stopped => "length",
                    _ => "stop",
                };
                Progress::End { text: rest.text, finish_reason }
            }
            Some(GenEvent::Failed(error)) => Progress::Failed(error.into()),
            None => Progress::Failed(ApiError::EngineGone),
        }
    }
}
