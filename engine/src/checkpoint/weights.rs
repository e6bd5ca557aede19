//! The safetensors files: their headers when a checkpoint is opened, their bytes when it is loaded.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use serde::Deserialize;

use super::error::Damage;
use super::{CheckpointError, ModelConfig, parse_json};

/// Longest header that is read; the format itself stops at 100 MB.
const HEADER_BYTES_MAX: u64 = 100_000_000;
const HEADER_LENGTH_BYTES: u64 = 8;

/// All weights in memory.
pub struct Weights {
    tensors: HashMap<String, Tensor>,
    /// BLAKE3 over configuration and weight files, in hexadecimal: the revision in the cache identity.
    pub digest: String,
}

struct Tensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Weights {
    #[cfg(test)]
    pub(crate) fn from_tensors(tensors: impl Iterator<Item = (String, Vec<usize>, Vec<f32>)>) -> Self {
        let tensors = tensors.map(|(name, shape, values)| (name, Tensor { shape, values })).collect();
        Self { tensors, digest: String::new() }
    }

    /// Takes a tensor out. It must be one of those that [`super::Checkpoint::open`] has checked.
    pub(crate) fn take(&mut self, name: &str) -> Vec<f32> {
        self.tensors.remove(name).expect("the tensors of the architecture were checked when opening").values
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shapes: BTreeMap<_, _> = self.tensors.iter().map(|(name, t)| (name, &t.shape)).collect();
        f.debug_struct("Weights").field("tensors", &shapes).field("digest", &self.digest).finish()
    }
}

/// The weight files of a checkpoint, their headers checked.
#[derive(Debug, Clone)]
pub(super) struct WeightFiles {
    /// In the order of their names, with their lengths.
    files: BTreeMap<PathBuf, u64>,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    pub(super) fn open(dir: &Path, config: &ModelConfig) -> Result<Self, CheckpointError> {
        let (paths, listing) = find(dir)?;
        let mut files = BTreeMap::new();
        let mut tensors = HashMap::new();
        for path in paths {
            let (bytes, metadata) = read_header(&path)?;
            files.insert(path.clone(), bytes);
            for (name, info) in metadata.tensors() {
                tensors.insert(name, (path.clone(), info.clone()));
            }
        }
        for (name, shape) in expected_tensors(config) {
            let Some((path, info)) = tensors.get(&name) else {
                return Err(CheckpointError::NoTensor { tensor: name, path: listing });
            };
            check_tensor(&name, path, info, shape)?;
        }
        Ok(Self { files })
    }

    pub(super) fn read(&self, config: &ModelConfig) -> Result<Weights, CheckpointError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&serde_json::to_vec(config).expect("a plain struct of numbers serialises"));
        let expected: HashMap<_, _> = expected_tensors(config).into_iter().collect();
        let mut tensors = HashMap::new();
        for (path, &bytes) in &self.files {
            let data = std::fs::read(path).map_err(|source| CheckpointError::io(path, source))?;
            let changed = || CheckpointError::Damaged { path: path.clone(), reason: Damage::Changed };
            if data.len() as u64 != bytes {
                return Err(changed());
            }
            hasher.update(&bytes.to_le_bytes()).update_rayon(&data);
            for (name, view) in SafeTensors::deserialize(&data).map_err(|_| changed())?.tensors() {
                let Some(shape) = expected.get(&name) else { continue };
                if view.shape() != shape.as_slice() {
                    return Err(changed());
                }
                let values = to_f32(view.dtype(), view.data()).ok_or_else(changed)?;
                tensors.insert(name, Tensor { shape: shape.clone(), values });
            }
        }
        if expected.keys().any(|name| !tensors.contains_key(name)) {
            let path = self.files.keys().next().cloned().unwrap_or_default();
            return Err(CheckpointError::Damaged { path, reason: Damage::Changed });
        }
        Ok(Weights { tensors, digest: hasher.finalize().to_hex().to_string() })
    }
}

/// The weight files, and the one to name when a tensor is in none of them.
fn find(dir: &Path) -> Result<(Vec<PathBuf>, PathBuf), CheckpointError> {
    let single = dir.join("model.safetensors");
    let index = dir.join("model.safetensors.index.json");
    if single.exists() || !index.exists() {
        return Ok((vec![single.clone()], single));
    }
    let shards: ShardIndex = parse_json(&index)?;
    let names: std::collections::BTreeSet<_> = shards.weight_map.into_values().collect();
    let mut paths = vec![];
    for name in names {
        if Path::new(&name).components().count() != 1 || name.starts_with('.') {
            let supported = "names of files beside it";
            return Err(CheckpointError::Unsupported {
                path: index,
                field: "weight_map",
                found: name,
                supported,
            });
        }
        paths.push(dir.join(name));
    }
    Ok((paths, index))
}

fn read_header(path: &Path) -> Result<(u64, Metadata), CheckpointError> {
    let io = |source| CheckpointError::io(path, source);
    let damaged = |reason| CheckpointError::Damaged { path: path.to_owned(), reason };
    let mut file = File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();
    let mut length = [0; HEADER_LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(|_| damaged(Damage::Header))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > HEADER_BYTES_MAX {
        return Err(damaged(Damage::Header));
    }
    if HEADER_LENGTH_BYTES + header_bytes > found {
        return Err(damaged(Damage::Length { found, expected: HEADER_LENGTH_BYTES + header_bytes }));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|_| damaged(Damage::Header))?;
    let expected = HEADER_LENGTH_BYTES + header_bytes + metadata.data_len() as u64;
    if found != expected {
        return Err(damaged(Damage::Length { found, expected }));
    }
    Ok((found, metadata))
}

fn check_tensor(
    name: &str,
    path: &Path,
    info: &TensorInfo,
    expected: Vec<usize>,
) -> Result<(), CheckpointError> {
    let (tensor, path) = (name.to_owned(), path.to_owned());
    if info.shape != expected {
        return Err(CheckpointError::Shape { tensor, path, found: info.shape.clone(), expected });
    }
    if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Err(CheckpointError::Dtype { tensor, path, found: format!("{:?}", info.dtype) });
    }
    Ok(())
}

fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let two = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    match dtype {
        Dtype::F32 => {
            Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        }
        Dtype::F16 => Some(bytes.chunks_exact(2).map(|b| f16::from_bits(two(b)).to_f32()).collect()),
        Dtype::BF16 => Some(bytes.chunks_exact(2).map(|b| bf16::from_bits(two(b)).to_f32()).collect()),
        _ => None,
    }
}

/// Names and shapes of all tensors that the architecture needs, in the order of the model.
pub(crate) fn expected_tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, ffn, head_dim) = (config.hidden, config.ffn, config.head_dim);
    let (q, kv) = (config.heads * head_dim, config.kv_heads * head_dim);
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab, hidden])];
    for layer in 0..config.layers {
        let mut add = |name: &str, shape: Vec<usize>| {
            tensors.push((format!("model.layers.{layer}.{name}"), shape));
        };
        add("input_layernorm.weight", vec![hidden]);
        for (name, outputs, inputs) in
            [("q_proj", q, hidden), ("k_proj", kv, hidden), ("v_proj", kv, hidden), ("o_proj", hidden, q)]
        {
            add(&format!("self_attn.{name}.weight"), vec![outputs, inputs]);
            if config.attention_bias {
                add(&format!("self_attn.{name}.bias"), vec![outputs]);
            }
        }
        add("post_attention_layernorm.weight", vec![hidden]);
        for (name, outputs, inputs) in
            [("gate_proj", ffn, hidden), ("up_proj", ffn, hidden), ("down_proj", hidden, ffn)]
        {
            add(&format!("mlp.{name}.weight"), vec![outputs, inputs]);
            if config.mlp_bias {
                add(&format!("mlp.{name}.bias"), vec![outputs]);
            }
        }
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    if !config.tie_embeddings {
        tensors.push(("lm_head.weight".to_owned(), vec![config.vocab, hidden]));
    }
    tensors
}
