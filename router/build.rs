//! Generates the gRPC side of the service `Store` from the descriptor set that hearth-proto leaves behind.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = PathBuf::from(std::env::var("DEP_HEARTH_PROTO_DESCRIPTOR")?);
    println!("cargo::rerun-if-changed={}", path.display());
    let descriptors = prost_types::FileDescriptorSet::decode(std::fs::read(&path)?.as_slice())?;
    // The server is for the tests, which play the store.
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .extern_path(".hearth.v1", "::hearth_proto::v1")
        .compile_fds(descriptors)?;
    Ok(())
}
