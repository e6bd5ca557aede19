//! A byte-level BPE tokenizer trained on the text, with the special tokens of a chat.

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use super::{GenerateError, VOCAB};

const SPECIAL: [&str; 5] = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"];
/// Id of the token that every prompt begins with.
pub(super) const BEGIN: u32 = 0;
/// Id of the token that ends a generation.
pub(super) const END: u32 = 1;
/// Special tokens come first; there are this many.
pub(super) const SPECIAL_COUNT: usize = SPECIAL.len();

/// Every message between its role and the end token, then the opening of the answer.
const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n\
    {{ message.content }}{{ eos_token }}\n{% endfor %}\
    {% if add_generation_prompt %}<|assistant|>\n{% endif %}";

/// Trains and returns `tokenizer.json`.
pub(super) fn train(text: &str) -> Result<String, GenerateError> {
    let special = SPECIAL.map(|token| AddedToken::from(token, true)).to_vec();
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCAB)
        .show_progress(false)
        .special_tokens(special.clone())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::<BPE, tokenizers::NormalizerWrapper, _, _, _>::default()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(byte_level))
        .with_post_processor(Some(byte_level))
        .with_decoder(Some(byte_level))
        .build()
        .map_err(GenerateError::Train)?;
    tokenizer.train(&mut trainer, text.lines()).map_err(GenerateError::Train)?;
    tokenizer.add_special_tokens(special).map_err(GenerateError::Train)?;
    let tokens = tokenizer.get_vocab_size(true);
    if tokens < VOCAB {
        return Err(GenerateError::TextTooShort { tokens });
    }
    let tokenizer: Tokenizer = Tokenizer::from(tokenizer);
    tokenizer.to_string(true).map_err(GenerateError::Train)
}

pub(super) fn config_json(context_tokens_max: usize) -> serde_json::Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BEGIN as usize],
        "eos_token": SPECIAL[END as usize],
        "model_max_length": context_tokens_max,
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE,
    })
}
