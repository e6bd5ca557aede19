//! What cannot work is refused at the start, with words that say what to do.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::checkpoint;
use crate::run::{Run, folder, until};
use crate::up;

/// What the program says when it ends with a failure, after checking that nothing is left of it.
fn failure(mut run: Run) -> String {
    let status = run.wait();
    assert_eq!(status.code(), Some(1), "{}", run.output());
    assert_eq!(run.processes(), Vec::<u32>::new());
    run.output()
}

fn copy_checkpoint(to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(checkpoint::small()).unwrap().flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn serve_damaged(damage: impl FnOnce(&Path)) -> String {
    let folder = folder();
    let model = folder.path().join("damaged");
    copy_checkpoint(&model);
    damage(&model);
    let model = model.to_str().unwrap().to_owned();
    failure(Run::start(folder, &["up", "--listen", "127.0.0.1:0", "--engines", "1", "--model", &model]))
}

#[test]
fn a_missing_checkpoint_is_said_at_once() {
    let output = failure(Run::start(folder(), &["up", "--listen", "127.0.0.1:0", "--model", "nowhere"]));
    assert!(output.contains("--model nowhere") && output.contains("config.json"), "{output}");
}

#[test]
fn truncated_weights_are_said() {
    let output = serve_damaged(|model| {
        let path = model.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    });
    assert!(output.contains("engine-1 ended") && output.contains("model.safetensors"), "{output}");
}

#[test]
fn an_architecture_that_is_not_supported_is_said() {
    let output = serve_damaged(|model| {
        let path = model.join("config.json");
        let text = fs::read_to_string(&path).unwrap().replace("LlamaForCausalLM", "MambaForCausalLM");
        fs::write(path, text.replace("\"llama\"", "\"mamba\"")).unwrap();
    });
    assert!(output.to_lowercase().contains("mamba"), "{output}");
}

#[test]
fn an_address_that_others_reach_is_refused() {
    let output = failure(Run::start(folder(), &["up", "--listen", "0.0.0.0:0"]));
    assert!(output.contains("reachable from other machines"), "{output}");
}

#[test]
fn a_store_in_use_by_another_process_is_said() {
    let folder = folder();
    let store = folder.path().join("data/store");
    fs::create_dir_all(&store).unwrap();
    let args = ["cachesvc", "--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--ready-file", "node.json"];
    let sizes = ["--pinned-bytes", "16MiB", "--nvme-bytes", "128MiB"];
    let data_dir = ["--data-dir", store.to_str().unwrap()];
    let node = Run::start(crate::run::folder(), &[&args[..], &sizes, &data_dir].concat());
    until("the node is ready", || node.path().join("node.json").exists());
    let output = failure(up::begin(folder, &["--engines", "1"]));
    assert!(output.contains("store ended") && output.contains("in use"), "{output}");
}

#[test]
fn a_store_of_another_version_is_refused_and_left_as_it_is() {
    let mut up = up::start(folder(), &["--engines", "1"]);
    up.run.signal(Signal::TERM);
    assert!(up.run.wait().success(), "{}", up.run.output());
    let folder = up.run.into_folder();
    let format = folder.path().join("data/store/FORMAT");
    let newer = fs::read_to_string(&format).unwrap().replacen("hearth-data 1", "hearth-data 2", 1);
    fs::write(&format, &newer).unwrap();
    let mut run = up::begin(folder, &["--engines", "1"]);
    assert_eq!(run.wait().code(), Some(1));
    let output = run.output();
    assert!(output.contains("store ended") && output.contains("has format 2"), "{output}");
    assert_eq!(fs::read_to_string(run.path().join("data/store/FORMAT")).unwrap(), newer);
}
