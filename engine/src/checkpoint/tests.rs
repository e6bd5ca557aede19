//! Every way in which a checkpoint directory can be wrong is told with the file at fault.

use std::collections::HashMap;
use std::fs;

use safetensors::tensor::{SafeTensors, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::error::Damage;
use super::*;
use crate::testing;

/// A copy of the small checkpoint, to be spoiled.
fn copy() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for entry in fs::read_dir(testing::checkpoint_dir()).expect("readable") {
        let path = entry.expect("readable").path();
        fs::copy(&path, dir.path().join(path.file_name().expect("a file"))).expect("copied");
    }
    dir
}

fn edit(dir: &TempDir, file: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.path().join(file);
    let mut value = serde_json::from_slice(&fs::read(&path).expect("readable")).expect("JSON");
    change(&mut value);
    fs::write(path, value.to_string()).expect("written");
}

fn refusal(dir: &TempDir) -> CheckpointError {
    Checkpoint::open(dir.path()).expect_err("must be refused")
}

fn with_config(field: &str, value: Value) -> CheckpointError {
    let dir = copy();
    edit(&dir, "config.json", |config| config[field] = value);
    let error = refusal(&dir);
    assert!(error.to_string().contains(dir.path().to_str().expect("a path")), "{error} names the file");
    error
}

#[test]
fn a_good_one_opens() {
    let dir = copy();
    let checkpoint = Checkpoint::open(dir.path()).expect("opens");
    assert_eq!((checkpoint.config.hidden, checkpoint.config.kv_heads), (64, 2));
    assert_eq!(checkpoint.eos_tokens, [1]);
    let digest = checkpoint.read_weights().expect("reads").digest;
    edit(&dir, "config.json", |config| config["rms_norm_eps"] = json!(1e-6));
    let other = Checkpoint::open(dir.path()).expect("opens").read_weights().expect("reads").digest;
    assert_ne!(digest, other, "what changes the results changes the digest");
}

#[test]
fn no_directory_and_missing_files() {
    let nowhere = Checkpoint::open(Path::new("/no/such/place"));
    assert!(matches!(nowhere, Err(CheckpointError::NoDirectory { .. })));
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let dir = copy();
        fs::remove_file(dir.path().join(file)).expect("removed");
        match refusal(&dir) {
            CheckpointError::Missing { path } => assert!(path.ends_with(file)),
            other => panic!("{file}: {other}"),
        }
    }
    let dir = copy();
    fs::remove_file(dir.path().join("generation_config.json")).expect("removed");
    assert_eq!(Checkpoint::open(dir.path()).expect("optional").eos_tokens, [1]);
}

#[test]
fn other_architectures_are_named() {
    match with_config("architectures", json!(["MixtralForCausalLM"])) {
        error @ CheckpointError::Architecture { .. } => {
            let text = error.to_string();
            assert!(text.contains("MixtralForCausalLM") && text.contains("LlamaForCausalLM"), "{text}");
        }
        other => panic!("{other}"),
    }
    assert!(matches!(with_config("architectures", json!([])), CheckpointError::Architecture { .. }));
    assert!(matches!(with_config("architectures", json!(7)), CheckpointError::Json { .. }));
}

#[test]
fn what_is_not_computed_is_refused() {
    for (field, value) in [
        ("hidden_act", json!("gelu")),
        ("head_dim", json!(20)),
        ("num_key_value_heads", json!(3)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(100_000)),
        ("max_position_embeddings", json!(0)),
        ("rms_norm_eps", json!(-1.0)),
        ("rope_theta", json!(0.0)),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
        ("rope_scaling", json!({"rope_type": "llama3"})),
        ("quantization_config", json!({"quant_method": "gptq"})),
    ] {
        match with_config(field, value.clone()) {
            CheckpointError::Unsupported { field: named, .. } => assert_eq!(named, field),
            other => panic!("{field} = {value}: {other}"),
        }
    }
    assert!(matches!(with_config("hidden_size", json!("wide")), CheckpointError::Json { .. }));
    assert!(matches!(with_config("hidden_size", json!(-4)), CheckpointError::Json { .. }));
}

#[test]
fn both_ways_to_write_rope_are_read() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512
    });
    for (field, value, theta) in [
        ("rope_scaling", llama3.clone(), 10_000.0),
        (
            "rope_parameters",
            {
                let mut value = llama3;
                value["rope_theta"] = json!(500_000.0);
                value
            },
            500_000.0,
        ),
    ] {
        let dir = copy();
        edit(&dir, "config.json", |config| {
            config.as_object_mut().expect("an object").remove("rope_scaling");
            if field == "rope_parameters" {
                config.as_object_mut().expect("an object").remove("rope_theta");
            }
            config[field] = value;
        });
        let config = Checkpoint::open(dir.path()).expect("opens").config;
        assert_eq!(config.rope_scaling.map(|rope| rope.factor), Some(8.0));
        assert_eq!(config.rope_theta, theta);
    }
}

#[test]
fn broken_json_and_tokenizers() {
    let dir = copy();
    fs::write(dir.path().join("config.json"), b"{\"architectures\": [").expect("written");
    assert!(matches!(refusal(&dir), CheckpointError::Json { .. }));
    let dir = copy();
    fs::write(dir.path().join("tokenizer.json"), b"{}").expect("written");
    assert!(matches!(refusal(&dir), CheckpointError::Tokenizer { .. }));
    let dir = copy();
    fs::write(dir.path().join("generation_config.json"), b"[").expect("written");
    assert!(matches!(refusal(&dir), CheckpointError::Json { .. }));
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    match with_config("vocab_size", json!(4000)) {
        CheckpointError::Vocabulary { tokens: 4096, vocab: 4000, .. } => {}
        other => panic!("{other}"),
    }
}

#[test]
fn damaged_weights_are_refused() {
    let whole = fs::read(testing::checkpoint_dir().join("model.safetensors")).expect("readable");
    let damage = |bytes: &[u8]| {
        let dir = copy();
        fs::write(dir.path().join("model.safetensors"), bytes).expect("written");
        match refusal(&dir) {
            CheckpointError::Damaged { path, reason } => {
                assert!(path.ends_with("model.safetensors"));
                reason
            }
            other => panic!("{other}"),
        }
    };
    assert!(matches!(damage(&[]), Damage::Header));
    assert!(matches!(damage(&whole[..7]), Damage::Header));
    assert!(matches!(damage(&whole[..100]), Damage::Length { found: 100, .. }));
    assert!(matches!(damage(&whole[..whole.len() - 1]), Damage::Length { .. }));
    assert!(matches!(damage(&[&whole[..], b"x"].concat()), Damage::Length { .. }));
    assert!(matches!(damage(&[0xff; 64]), Damage::Header));
    let mut broken = whole.clone();
    broken[9] = b'!';
    assert!(matches!(damage(&broken), Damage::Header));
}

#[test]
fn a_file_that_changes_after_opening_is_noticed() {
    let dir = copy();
    let checkpoint = Checkpoint::open(dir.path()).expect("opens");
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).expect("readable");
    fs::write(&path, &whole[..whole.len() / 2]).expect("written");
    let error = checkpoint.read_weights().expect_err("must be refused");
    assert!(matches!(error, CheckpointError::Damaged { reason: Damage::Changed, .. }), "{error}");
}

/// Writes the weights again, after a change of the list of tensors.
fn rewrite(dir: &TempDir, change: impl Fn(&str, TensorView<'static>) -> Option<TensorView<'static>>) {
    let path = dir.path().join("model.safetensors");
    let bytes: &'static [u8] = fs::read(&path).expect("readable").leak();
    let tensors = SafeTensors::deserialize(bytes).expect("valid").tensors();
    let kept: HashMap<String, TensorView<'_>> =
        tensors.into_iter().filter_map(|(name, view)| change(&name, view).map(|view| (name, view))).collect();
    fs::write(path, safetensors::serialize(kept, None).expect("serialises")).expect("written");
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let dir = copy();
    rewrite(&dir, |tensor, view| (tensor != name).then_some(view));
    match refusal(&dir) {
        CheckpointError::NoTensor { tensor, .. } => assert_eq!(tensor, name),
        other => panic!("{other}"),
    }
    let dir = copy();
    rewrite(&dir, |tensor, view| {
        let (dtype, data) = (view.dtype(), view.data());
        Some(if tensor == name { TensorView::new(dtype, vec![64, 96], data).expect("as long") } else { view })
    });
    match refusal(&dir) {
        CheckpointError::Shape { tensor, found, expected, .. } => {
            assert_eq!((tensor.as_str(), found, expected), (name, vec![64, 96], vec![96, 64]));
        }
        other => panic!("{other}"),
    }
    let dir = copy();
    rewrite(&dir, |tensor, view| {
        let (shape, data) = (view.shape().to_vec(), view.data());
        let other = safetensors::Dtype::I16;
        Some(if tensor == name { TensorView::new(other, shape, data).expect("as long") } else { view })
    });
    assert!(matches!(refusal(&dir), CheckpointError::Dtype { .. }));
    assert!(matches!(with_config("intermediate_size", json!(128)), CheckpointError::Shape { .. }));
    assert!(matches!(with_config("attention_bias", json!(true)), CheckpointError::NoTensor { .. }));
}

#[test]
fn shards_are_read_through_their_index() {
    let whole = Checkpoint::open(&testing::checkpoint_dir()).expect("opens").read_weights().expect("reads");
    let dir = copy();
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).expect("readable");
    let mut shards: [Vec<(String, TensorView<'_>)>; 2] = [vec![], vec![]];
    for (index, tensor) in SafeTensors::deserialize(&bytes).expect("valid").tensors().into_iter().enumerate()
    {
        shards[index % 2].push(tensor);
    }
    let mut map = serde_json::Map::new();
    for (index, shard) in shards.into_iter().enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", index + 1);
        map.extend(shard.iter().map(|(name, _)| (name.clone(), json!(file))));
        fs::write(dir.path().join(file), safetensors::serialize(shard, None).expect("serialises"))
            .expect("written");
    }
    fs::remove_file(&path).expect("removed");
    let index = dir.path().join("model.safetensors.index.json");
    fs::write(&index, json!({"weight_map": map}).to_string()).expect("written");
    let mut sharded = Checkpoint::open(dir.path()).expect("opens").read_weights().expect("reads");
    let mut whole = whole;
    for name in ["model.norm.weight", "model.layers.1.self_attn.k_proj.weight", "lm_head.weight"] {
        assert_eq!(sharded.take(name), whole.take(name));
    }
    fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).expect("removed");
    assert!(matches!(refusal(&dir), CheckpointError::Missing { .. }));
    fs::write(&index, json!({"weight_map": {"a": "../model.safetensors"}}).to_string()).expect("written");
    assert!(matches!(refusal(&dir), CheckpointError::Unsupported { field: "weight_map", .. }));
}
