//! Text to tokens and back, as `tokenizer.json` and `tokenizer_config.json` say.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;

use crate::error::{LoadError, RequestError};
use crate::file;

/// Whose business the special tokens around a text are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// The tokenizer adds those that its configuration asks for, such as the one that begins a text.
    Added,
    /// The text already contains them, as what a chat template writes does.
    InText,
}

/// A model's tokenizer. Shared freely between threads.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Edge,
    eos: Edge,
    vocab: usize,
    names: BTreeMap<&'static str, String>,
}

/// A special token at the begin or the end of a text.
#[derive(Debug, Clone, Copy)]
struct Edge {
    token: Option<u32>,
    /// Whether the configuration wants it; `None` leaves that to `tokenizer.json`.
    add: Option<bool>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where there are such files, `tokenizer_config.json` and
    /// `special_tokens_map.json` of a Hugging Face model directory.
    ///
    /// # Errors
    /// A file is missing, damaged, or disagrees with another: see [`LoadError`].
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join("tokenizer.json");
        let bytes = file::read(&path)?.ok_or_else(|| LoadError::Read {
            path: path.clone(),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|source| LoadError::Tokenizer { path: path.clone(), source })?;
        // Both belong to the training of other kinds of model; here they would change prompts in silence.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|source| LoadError::Tokenizer { path, source })?;

        let config_path = dir.join("tokenizer_config.json");
        let config: TokenizerConfig = file::read_json(&config_path)?;
        let map: SpecialTokens = file::read_json(&dir.join("special_tokens_map.json"))?;
        let names = config.special.or(map);
        let edge = |name: &'static str, add| match names.get(name) {
            None => Ok(Edge { token: None, add }),
            Some(text) => match inner.token_to_id(text) {
                Some(token) => Ok(Edge { token: Some(token), add }),
                None => {
                    Err(LoadError::UnknownSpecial { path: config_path.clone(), name, token: text.clone() })
                }
            },
        };
        let (bos, eos) = (edge("bos_token", config.add_bos_token)?, edge("eos_token", config.add_eos_token)?);
        let vocab = inner.get_vocab(true).values().max().map_or(0, |&last| last as usize + 1);
        Ok(Self { inner, bos, eos, vocab, names })
    }

    /// The tokens of a text. Time and memory grow with the text, not faster.
    ///
    /// # Errors
    /// [`RequestError::Tokenizer`] when the tokenizer has a fault.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>, RequestError> {
        let added = specials == Specials::Added;
        let encoding =
            self.inner.encode_fast(text, added).map_err(|source| RequestError::Tokenizer { source })?;
        let mut tokens = encoding.get_ids().to_vec();
        if added {
            let mask = encoding.get_special_tokens_mask();
            self.settle_edges(&mut tokens, (mask.first() == Some(&1), mask.last() == Some(&1)));
        }
        Ok(tokens)
    }

    /// Makes begin and end what the configuration asks for, where it asks. `added` says whether
    /// `tokenizer.json` put a special token at the begin and at the end.
    fn settle_edges(&self, tokens: &mut Vec<u32>, added: (bool, bool)) {
        if let Edge { token: Some(eos), add: Some(add) } = self.eos {
            let there = added.1 && tokens.last() == Some(&eos);
            match (add, there) {
                (true, false) => tokens.push(eos),
                (false, true) => drop(tokens.pop()),
                _ => {}
            }
        }
        if let Edge { token: Some(bos), add: Some(add) } = self.bos {
            let there = added.0 && tokens.first() == Some(&bos);
            match (add, there) {
                (true, false) => tokens.insert(0, bos),
                (false, true) => drop(tokens.remove(0)),
                _ => {}
            }
        }
    }

    /// The text of tokens, without the special ones. Bytes that are not UTF-8 become U+FFFD; tokens
    /// that the vocabulary does not have become nothing.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.inner.decode(tokens, true).unwrap_or_default()
    }

    /// The highest token, plus one. A model may have more rows than that, never fewer.
    pub fn vocab_size(&self) -> usize {
        self.vocab
    }

    /// The token with exactly this text.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// The token that ends a text, if the configuration names one.
    pub fn eos(&self) -> Option<u32> {
        self.eos.token
    }

    /// The special tokens by their role, such as `bos_token`, as chat templates expect them.
    pub(crate) fn special_names(&self) -> &BTreeMap<&'static str, String> {
        &self.names
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

/// The fields of `tokenizer_config.json` that change what is encoded.
#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    #[serde(flatten)]
    special: SpecialTokens,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SpecialTokens {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    unk_token: Option<TokenText>,
    pad_token: Option<TokenText>,
}

impl SpecialTokens {
    /// The roles that `self` or else `other` fills.
    fn or(self, other: Self) -> BTreeMap<&'static str, String> {
        [
            ("bos_token", self.bos_token.or(other.bos_token)),
            ("eos_token", self.eos_token.or(other.eos_token)),
            ("unk_token", self.unk_token.or(other.unk_token)),
            ("pad_token", self.pad_token.or(other.pad_token)),
        ]
        .into_iter()
        .filter_map(|(name, token)| Some((name, token?.text())))
        .collect()
    }
}

/// A token, written as its text or as an object with its text inside.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Plain(String),
    Object { content: String },
}

impl TokenText {
    fn text(self) -> String {
        match self {
            Self::Plain(text) | Self::Object { content: text } => text,
        }
    }
}

#[cfg(test)]
mod tests;
