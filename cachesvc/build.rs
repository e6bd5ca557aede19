//! Generates the server side of the control plane from the contract's schema.

use prost::Message;
use prost_types::FileDescriptorSet;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::var("DEP_HEARTH_PROTO_DESCRIPTOR")?;
    println!("cargo::rerun-if-changed={path}");
    let descriptors = FileDescriptorSet::decode(std::fs::read(path)?.as_slice())?;
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".hearth.v1", "::hearth_proto::v1")
        .compile_fds(descriptors)?;
    Ok(())
}
