//! The `blobcast` binary: sets the allocator and runs the library's [`blobcast::cli`]. Everything
//! else is in the library.

use std::process::ExitCode;

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    blobcast::cli::main()
}
