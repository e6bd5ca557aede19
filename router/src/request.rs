//! What the router reads of a request: the model, and the prompt's tokens to look them up in the index.
//!
//! The engine is the one that judges a request. Here only what is no JSON at all is refused; a request that cannot be
//! turned into tokens is routed by load, and the engine says what is wrong with it.

use std::sync::PoisonError;

use hearth_prompt::{Endpoint, Prompt, Request, RequestError};
use hearth_proto::key::KeyChain;
use hearth_proto::tenant::TenantSecret;
use serde::Deserialize;

use crate::decide::{Chain, Ignorance, PromptView};
use crate::index::{Index, SharedIndex};

/// Bytes of text that make a token, where nobody counts them.
const TOKEN_BYTES: u64 = 4;

/// A model whose prompts can be tokenized.
#[derive(Debug)]
pub struct Model {
    /// Names that users ask for it by. Engines store its blocks under the first one.
    pub names: Vec<String>,
    /// From its directory.
    pub prompt: Prompt,
}

/// Reads requests.
#[derive(Debug)]
pub struct Reader {
    models: Vec<Model>,
    secret: Option<TenantSecret>,
    index: SharedIndex,
}

/// What was read.
#[derive(Debug)]
pub struct Reading {
    /// The model asked for.
    pub model: String,
    /// What is known of the prompt and of who holds it.
    pub prompt: PromptView,
}

impl Reader {
    /// Reads requests for these `models` and looks their prompts up in `index` as the tenant whose `secret` it is. Without
    /// a secret nothing is looked up.
    pub fn new(models: Vec<Model>, secret: Option<TenantSecret>, index: SharedIndex) -> Self {
        Self { models, secret, index }
    }

    /// Reads a request. Takes as long as tokenizing does: call it where blocking is allowed.
    ///
    /// # Errors
    /// The body is no JSON object that names a model.
    pub fn read(&self, endpoint: Endpoint, body: &[u8]) -> Result<Reading, RequestError> {
        let estimate = body.len() as u64 / TOKEN_BYTES;
        let unmatched = |why| PromptView::Unmatched { tokens: estimate, why };
        match Request::parse(endpoint, body) {
            Ok(request) => {
                let prompt = self.look_up(&request).unwrap_or_else(unmatched);
                Ok(Reading { model: request.model, prompt })
            }
            Err(error @ RequestError::Json { .. }) => Err(error),
            Err(error) => match serde_json::from_slice::<Named>(body) {
                Ok(Named { model }) => Ok(Reading { model, prompt: unmatched(Ignorance::NotTokenized) }),
                Err(_) => Err(error),
            },
        }
    }

    fn look_up(&self, request: &Request) -> Result<PromptView, Ignorance> {
        let mut models = self.models.iter();
        let model =
            models.find(|model| model.names.contains(&request.model)).ok_or(Ignorance::NoTokenizer)?;
        let name = model.names.first().expect("contains one");
        let secret = self.secret.as_ref().ok_or(Ignorance::NoFeed)?;
        let identities = self.with_index(|index| index.complete().then(|| index.identities(name)));
        let identities = identities.ok_or(Ignorance::NoFeed)?;
        let tokens = model.prompt.tokens(request).map_err(|_| Ignorance::NotTokenized)?;
        let salt = request.cache_salt.as_deref().unwrap_or_default().as_bytes();
        let chains = identities.iter().map(|identity| {
            let chain = KeyChain::new(secret, identity);
            let keys = chain.keys(salt, &tokens);
            let found = self.with_index(|index| index.matches(&keys));
            Chain::new(chain.block_tokens() as u64, found)
        });
        Ok(PromptView::Matched { tokens: tokens.len() as u64, chains: chains.collect() })
    }

    fn with_index<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The one field that routing cannot do without.
#[derive(Deserialize)]
struct Named {
    model: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> Reader {
        Reader::new(Vec::new(), None, SharedIndex::default())
    }

    #[test]
    fn what_names_a_model_is_routed_and_the_rest_refused() {
        let read = |body: &str| reader().read(Endpoint::Chat, body.as_bytes());
        let good = read(r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#).expect("good");
        assert!(matches!(good.prompt, PromptView::Unmatched { why: Ignorance::NoTokenizer, .. }));
        let odd = read(r#"{"model":"m","messages":[],"temperature":99}"#).expect("for the engine to judge");
        assert!(matches!(odd.prompt, PromptView::Unmatched { why: Ignorance::NotTokenized, .. }));
        assert_eq!(odd.model, "m");
        assert!(matches!(read("{\"model\": \"m\""), Err(RequestError::Json { .. })));
        assert_eq!(read(r#"{"messages":[]}"#).expect_err("no model").status(), 400);
        assert_eq!(read("[1]").expect_err("no object").status(), 400);
    }
}
