//! Compiles the message schema with protox, so that no protoc is needed, and tells dependents where the
//! descriptor set is (`DEP_HEARTH_PROTO_DESCRIPTOR`), from which they generate their side of the service.

use std::path::PathBuf;

use prost::Message;

const SCHEMA: &str = "hearth/v1/hearth.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile([SCHEMA], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let path = out.join("hearth.v1.descriptor.bin");
    std::fs::write(&path, descriptors.encode_to_vec())?;
    println!("cargo::metadata=DESCRIPTOR={}", path.display());
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}
