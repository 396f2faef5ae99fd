//! Compiles `proto/` without a system `protoc`: our own protocol, and the one that traces are sent by.
//!
//! Our own takes two passes over one descriptor set: the first makes all messages and the clients; the second makes the services, with
//! the answers that carry events replaced by [`wire::Frame`], which copies an event's stored bytes instead of encoding it. The
//! messages of `Subscribe` are written past the generated code (`rpc::stream`).

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

const PROTOS: [&str; 3] = [
    "blobcast/v1/event.proto",
    "blobcast/v1/event_service.proto",
    "blobcast/v1/admin_service.proto",
];
/// What traces are sent by: version 1.10.0 of github.com/open-telemetry/opentelemetry-proto (Apache-2.0), unchanged.
const OTLP: [&str; 1] = ["opentelemetry/proto/collector/trace/v1/trace_service.proto"];
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
    // The set with imports is what reflection serves; its encoding keeps what prost's own types would drop.
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
    compile_otlp(&out.join("otlp"))
}

/// Apart from our own: reflection is not to serve it.
fn compile_otlp(out: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(out)?;
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(OTLP)?;
    // The server is for the tests, which take what is sent.
    tonic_prost_build::configure()
        .out_dir(out)
        .include_file("mod.rs")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
