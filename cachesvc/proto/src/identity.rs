//! What changes the bytes of a KV block, and its fingerprint.

use std::fmt;

use thiserror::Error;

use crate::limit::{DIMENSION_MAX, GROUPS_MAX, NAME_BYTES_MAX};
use crate::v1;

/// Everything that changes the bytes of a KV block.
///
/// Two engines share blocks exactly when their identities are equal. Absent text is the empty string.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CacheIdentity {
    /// Name of the model as users ask for it.
    pub model: String,
    /// Revision or digest of the weights.
    pub revision: String,
    /// Digest of the tokenizer.
    pub tokenizer: String,
    /// Data type that the model computes in, such as `f32`.
    pub compute_dtype: String,
    /// Data type of the stored keys and values.
    pub kv_dtype: String,
    /// How quantised keys and values are scaled: `none`, or the engine's name for its mode.
    pub kv_scale: String,
    /// Attention groups in layer order; one for models whose layers are alike.
    pub groups: Vec<AttentionGroup>,
    /// Tokens of one block.
    pub block_tokens: u32,
    /// RoPE parameters in the canonical text of the engine, for example `theta=10000;scaling=none`.
    pub rope: String,
    /// LoRA adapter; empty for the base model.
    pub adapter: String,
    /// Revision or digest of the adapter.
    pub adapter_revision: String,
    /// Order of the payload: [`LAYOUT_CANONICAL`], or the name of an engine's own order, copied whole.
    pub layout: String,
    /// Version of the block format; see [`crate::version::BLOCK_FORMAT`].
    pub format: u32,
}

/// The canonical payload order: layer, KV head, K then V, token, dimension.
pub const LAYOUT_CANONICAL: &str = "canonical";

/// Layers that share one kind of attention and one shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttentionGroup {
    /// `full`, `sliding:TOKENS`, or the engine's name for a state or index object.
    pub kind: String,
    /// Number of layers.
    pub layers: u32,
    /// KV heads of each layer.
    pub kv_heads: u32,
    /// Elements of one head of one token.
    pub head_dim: u32,
}

/// BLAKE3 of an identity's canonical encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// The first field in which two identities differ.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "identity field `{field}` is {ours:?} in the store and {theirs:?} in this client: \
     start both with the same model and cache settings"
)]
pub struct IdentityMismatch {
    /// Name of the field.
    pub field: String,
    /// Value of the side that refuses.
    pub ours: String,
    /// Value of the side that was refused.
    pub theirs: String,
}

/// An identity that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// A text field is too long or, where it must not be, empty.
    #[error("identity field `{field}` has {bytes} bytes; 1 to {max} are allowed", max = NAME_BYTES_MAX)]
    Text {
        /// Name of the field.
        field: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A number is zero or absurd.
    #[error("identity field `{field}` is {value}; 1 to {max} is allowed", max = DIMENSION_MAX)]
    Number {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// There are no attention groups, or too many.
    #[error("identity has {0} attention groups; 1 to {max} are allowed", max = GROUPS_MAX)]
    Groups(usize),
    /// The message carries no identity.
    #[error("the message carries no identity")]
    Missing,
}

/// One field as it is hashed and as it is shown.
struct Field {
    name: &'static str,
    value: String,
}

impl CacheIdentity {
    /// The fingerprint: BLAKE3 over, for each field in declaration order, its name and value, each preceded by
    /// its length as a little-endian `u32`.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hasher = blake3::Hasher::new_derive_key("hearth v1 cache identity");
        let mut put = |bytes: &[u8]| {
            let len = u32::try_from(bytes.len()).expect("identity fields are far below 4 GiB");
            hasher.update(&len.to_le_bytes()).update(bytes);
        };
        for field in self.fields() {
            put(field.name.as_bytes());
            put(field.value.as_bytes());
        }
        Fingerprint(*hasher.finalize().as_bytes())
    }

    /// The first field in which `theirs` differs from `self`.
    pub fn mismatch(&self, theirs: &Self) -> Option<IdentityMismatch> {
        self.fields()
            .into_iter()
            .zip(theirs.fields())
            .find(|(a, b)| a.value != b.value)
            .map(|(a, b)| IdentityMismatch { field: a.name.to_owned(), ours: a.value, theirs: b.value })
    }

    /// Checks lengths and ranges.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<(), IdentityError> {
        for (field, value, required) in [
            ("model", &self.model, true),
            ("revision", &self.revision, true),
            ("tokenizer", &self.tokenizer, false),
            ("compute_dtype", &self.compute_dtype, true),
            ("kv_dtype", &self.kv_dtype, true),
            ("kv_scale", &self.kv_scale, true),
            ("rope", &self.rope, false),
            ("adapter", &self.adapter, false),
            ("adapter_revision", &self.adapter_revision, false),
            ("layout", &self.layout, true),
        ] {
            text(field, value, required)?;
        }
        number("block_tokens", self.block_tokens)?;
        if self.groups.is_empty() || self.groups.len() > GROUPS_MAX {
            return Err(IdentityError::Groups(self.groups.len()));
        }
        for group in &self.groups {
            text("groups.kind", &group.kind, true)?;
            number("groups.layers", group.layers)?;
            number("groups.kv_heads", group.kv_heads)?;
            number("groups.head_dim", group.head_dim)?;
        }
        Ok(())
    }

    /// Every field, once, in declaration order.
    ///
    /// The pattern names all of them and `unused_variables` is an error here, so a field that is added to the
    /// struct and not hashed does not compile.
    #[deny(unused_variables)]
    fn fields(&self) -> Vec<Field> {
        let Self {
            model,
            revision,
            tokenizer,
            compute_dtype,
            kv_dtype,
            kv_scale,
            groups,
            block_tokens,
            rope,
            adapter,
            adapter_revision,
            layout,
            format,
        } = self;
        let groups: Vec<String> = groups.iter().map(AttentionGroup::canonical).collect();
        [
            ("model", model.clone()),
            ("revision", revision.clone()),
            ("tokenizer", tokenizer.clone()),
            ("compute_dtype", compute_dtype.clone()),
            ("kv_dtype", kv_dtype.clone()),
            ("kv_scale", kv_scale.clone()),
            ("groups", groups.join(",")),
            ("block_tokens", block_tokens.to_string()),
            ("rope", rope.clone()),
            ("adapter", adapter.clone()),
            ("adapter_revision", adapter_revision.clone()),
            ("layout", layout.clone()),
            ("format", format.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| Field { name, value })
        .collect()
    }
}

fn text(field: &'static str, value: &str, required: bool) -> Result<(), IdentityError> {
    if value.len() > NAME_BYTES_MAX || (required && value.is_empty()) {
        return Err(IdentityError::Text { field, bytes: value.len() });
    }
    Ok(())
}

fn number(field: &'static str, value: u32) -> Result<(), IdentityError> {
    if value == 0 || value > DIMENSION_MAX {
        return Err(IdentityError::Number { field, value });
    }
    Ok(())
}

impl AttentionGroup {
    /// Unambiguous text: the kind carries its length, because it may hold any character.
    #[deny(unused_variables)]
    fn canonical(&self) -> String {
        let Self { kind, layers, kv_heads, head_dim } = self;
        format!("{}:{kind}/{layers}x{kv_heads}x{head_dim}", kind.len())
    }
}

impl Fingerprint {
    /// The first 16 hexadecimal digits, for logs.
    pub fn short(&self) -> String {
        self.0[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({})", self.short())
    }
}

impl From<&CacheIdentity> for v1::Identity {
    fn from(identity: &CacheIdentity) -> Self {
        let identity = identity.clone();
        Self {
            model: identity.model,
            revision: identity.revision,
            tokenizer: identity.tokenizer,
            compute_dtype: identity.compute_dtype,
            kv_dtype: identity.kv_dtype,
            kv_scale: identity.kv_scale,
            groups: identity
                .groups
                .into_iter()
                .map(|g| v1::AttentionGroup {
                    kind: g.kind,
                    layers: g.layers,
                    kv_heads: g.kv_heads,
                    head_dim: g.head_dim,
                })
                .collect(),
            block_tokens: identity.block_tokens,
            rope: identity.rope,
            adapter: identity.adapter,
            adapter_revision: identity.adapter_revision,
            layout: identity.layout,
            format: identity.format,
        }
    }
}

impl TryFrom<v1::Identity> for CacheIdentity {
    type Error = IdentityError;

    fn try_from(message: v1::Identity) -> Result<Self, Self::Error> {
        let identity = Self {
            model: message.model,
            revision: message.revision,
            tokenizer: message.tokenizer,
            compute_dtype: message.compute_dtype,
            kv_dtype: message.kv_dtype,
            kv_scale: message.kv_scale,
            groups: message
                .groups
                .into_iter()
                .map(|g| AttentionGroup {
                    kind: g.kind,
                    layers: g.layers,
                    kv_heads: g.kv_heads,
                    head_dim: g.head_dim,
                })
                .collect(),
            block_tokens: message.block_tokens,
            rope: message.rope,
            adapter: message.adapter,
            adapter_revision: message.adapter_revision,
            layout: message.layout,
            format: message.format,
        };
        identity.validate()?;
        Ok(identity)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> CacheIdentity {
        CacheIdentity {
            model: "demo".into(),
            revision: "r1".into(),
            tokenizer: "t1".into(),
            compute_dtype: "f32".into(),
            kv_dtype: "f32".into(),
            kv_scale: "none".into(),
            groups: vec![AttentionGroup { kind: "full".into(), layers: 8, kv_heads: 4, head_dim: 64 }],
            block_tokens: 16,
            rope: "theta=10000;scaling=none".into(),
            adapter: String::new(),
            adapter_revision: String::new(),
            layout: LAYOUT_CANONICAL.into(),
            format: crate::version::BLOCK_FORMAT,
        }
    }

    /// One mutation of each field.
    fn mutations() -> Vec<(&'static str, CacheIdentity)> {
        let change = |field, apply: fn(&mut CacheIdentity)| {
            let mut identity = sample();
            apply(&mut identity);
            (field, identity)
        };
        vec![
            change("model", |i| i.model.push('x')),
            change("revision", |i| i.revision.push('x')),
            change("tokenizer", |i| i.tokenizer.push('x')),
            change("compute_dtype", |i| i.compute_dtype = "bf16".into()),
            change("kv_dtype", |i| i.kv_dtype = "f16".into()),
            change("kv_scale", |i| i.kv_scale = "per-head".into()),
            change("groups", |i| i.groups[0].kind = "sliding:128".into()),
            change("groups", |i| i.groups[0].layers = 9),
            change("groups", |i| i.groups[0].kv_heads = 8),
            change("groups", |i| i.groups[0].head_dim = 128),
            change("groups", |i| i.groups.push(i.groups[0].clone())),
            change("block_tokens", |i| i.block_tokens = 32),
            change("rope", |i| i.rope.push('x')),
            change("adapter", |i| i.adapter = "lora".into()),
            change("adapter_revision", |i| i.adapter_revision = "2".into()),
            change("layout", |i| i.layout = "cpu-opaque".into()),
            change("format", |i| i.format += 1),
        ]
    }

    #[test]
    fn any_change_changes_the_fingerprint_and_is_named() {
        let base = sample();
        let mut seen = std::collections::BTreeSet::from([base.fingerprint()]);
        for (field, identity) in mutations() {
            assert!(seen.insert(identity.fingerprint()), "{field} is not hashed");
            assert_eq!(base.mismatch(&identity).map(|m| m.field).as_deref(), Some(field));
        }
        assert_eq!(base.mismatch(&base.clone()), None);
    }

    #[test]
    fn text_cannot_move_between_neighbouring_fields() {
        let mut a = sample();
        let mut b = sample();
        (a.model, a.revision) = ("ab".into(), "c".into());
        (b.model, b.revision) = ("a".into(), "bc".into());
        assert_ne!(a.fingerprint(), b.fingerprint());
    }

    #[test]
    fn the_wire_form_round_trips_and_is_validated() {
        for (_, identity) in mutations() {
            assert_eq!(CacheIdentity::try_from(v1::Identity::from(&identity)), Ok(identity));
        }
        let broken = |apply: fn(&mut v1::Identity)| {
            let mut message = v1::Identity::from(&sample());
            apply(&mut message);
            CacheIdentity::try_from(message).expect_err("must be refused")
        };
        assert_eq!(broken(|m| m.groups.clear()), IdentityError::Groups(0));
        assert_eq!(broken(|m| m.block_tokens = 0), IdentityError::Number { field: "block_tokens", value: 0 });
        assert!(matches!(broken(|m| m.model.clear()), IdentityError::Text { field: "model", .. }));
        assert!(matches!(broken(|m| m.rope = "x".repeat(600)), IdentityError::Text { field: "rope", .. }));
        assert!(matches!(broken(|m| m.groups[0].layers = u32::MAX), IdentityError::Number { .. }));
    }
}
