//! Generates the client of the store's control service from the descriptor set of `hearth-proto`.

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::var("DEP_HEARTH_PROTO_DESCRIPTOR")?;
    println!("cargo::rerun-if-changed={path}");
    let descriptors = prost_types::FileDescriptorSet::decode(std::fs::read(path)?.as_slice())?;
    tonic_prost_build::configure()
        .build_server(false)
        .extern_path(".hearth.v1", "::hearth_proto::v1")
        .compile_fds(descriptors)?;
    Ok(())
}
