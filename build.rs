//! Compiles `proto/` without a system `protoc`.
//!
//! This takes two passes over one descriptor set. The first makes all messages and the clients. The second makes the services, in which
//! [`wire::Frame`] replaces the responses that carry events: it copies an event's stored bytes instead of encoding it. The messages of
//! `Subscribe` bypass the generated code (`rpc::stream`).

use std::{env, error::Error, fs, path::PathBuf};

const PROTOS: [&str; 3] = [
    "blobcast/v1/event.proto",
    "blobcast/v1/event_service.proto",
    "blobcast/v1/admin_service.proto",
];
const FRAMES: [&str; 4] = [
    "WaitTaskResponse",
    "GetTaskResponse",
    "ListEventsResponse",
    "GetRawBodyResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(PROTOS)?;
    // Reflection serves the set with its imports. This encoding keeps options that prost's own types would drop.
    fs::write(
        out.join("descriptor_set.bin"),
        compiler.encode_file_descriptor_set(),
    )?;
    let descriptors = compiler.file_descriptor_set();

    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".blobcast.v1.Event.raw_body")
        .bytes(".blobcast.v1.GetRawBodyResponse.chunk")
        .bytes(".blobcast.v1.QuarantinedCallback.body")
        .bytes(".blobcast.v1.ReleaseQuarantinedRequest.body")
        .bytes(".blobcast.v1.BackupResponse.chunk")
        .compile_fds(descriptors.clone())?;

    let services = out.join("services");
    fs::create_dir_all(&services)?;
    let mut builder = tonic_prost_build::configure()
        .build_client(false)
        .out_dir(services)
        .codec_path("crate::wire::frame::FrameCodec")
        .extern_path(".blobcast.v1", "crate::wire::v1");
    for response in FRAMES {
        builder = builder.extern_path(format!(".blobcast.v1.{response}"), "crate::wire::Frame");
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
