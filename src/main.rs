//! The binary; everything is in the library's [`blobcast::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    blobcast::cli::main()
}
