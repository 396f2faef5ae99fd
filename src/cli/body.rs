//! Reads a callback's body from a file or standard input, byte for byte.

use std::{
    fs::File,
    io::{self, Read},
};

use bytes::Bytes;

use super::output::unreadable;

/// Largest body that is read: the largest that a broker can be configured to accept.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The content of the file, or of standard input if `path` is `-`.
pub(super) fn read(path: &str) -> anyhow::Result<Bytes> {
    read_all(path).map_err(|error| unreadable("--body", path.as_ref(), &error))
}

fn read_all(path: &str) -> io::Result<Bytes> {
    let mut body = Vec::new();
    let count = match path {
        "-" => io::stdin()
            .lock()
            .take(BODY_BYTES_MAX + 1)
            .read_to_end(&mut body)?,
        _ => File::open(path)?
            .take(BODY_BYTES_MAX + 1)
            .read_to_end(&mut body)?,
    };
    if count as u64 > BODY_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {BODY_BYTES_MAX} bytes"),
        ));
    }
    Ok(body.into())
}
