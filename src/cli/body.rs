//! A callback's body from a file or standard input, byte for byte.

use std::{
    fs::File,
    io::{self, Read},
};

use bytes::Bytes;

use super::output::unreadable;

/// Longest body that is read: the most that a broker can be set to take.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Everything in the file, or in standard input if it is `-`.
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
