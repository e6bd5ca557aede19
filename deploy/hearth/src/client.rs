//! What the demo says to the stack: OpenAI chat completions over HTTP, and the store's control service.

pub(crate) mod chat;
pub(crate) mod control;
pub(crate) mod sse;
