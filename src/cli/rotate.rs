//! `token rotate` and `token retire`: put a new secret beside the one in use, and later remove the
//! old one.
//!
//! Replaces the credentials file as a whole and keeps its owner and mode. Needs no running broker.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::{
    args,
    output::{self, Format, Usage, unreadable},
};
use crate::{
    credentials::{self, NewSecret, Target, TokenHash, new_secret},
    files,
};

/// Longest secret that is read for the vendor's.
const SECRET_BYTES_MAX: u64 = 4 * 1024;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast token rotate client billing --credentials-file /etc/blobcast/credentials.toml
  blobcast token rotate callback runblob --keep-old-for 30d
  blobcast token rotate body-signature --secret-file new-secret
  blobcast token retire client billing

The old secret stays valid beside the new one until it is retired or --keep-old-for is over, so \
that nobody is locked out while the new one is distributed. \
blobcast_credential_last_used_timestamp_seconds with secret=\"previous\" says when the old one was \
used last. A running broker applies the file within a second.")]
pub(super) struct RotateArgs {
    #[command(subcommand)]
    target: RotateTarget,
    #[command(flatten)]
    file: FileArgs,
    /// Accept the old secret for this long from now, for example 7d [default: until it is retired,
    /// or until its own expiry].
    #[arg(long, value_name = "DURATION", value_parser = args::duration, global = true)]
    keep_old_for: Option<Duration>,
    /// Refuse the new secret after this long from now, for example 90d [default: never].
    #[arg(long, value_name = "DURATION", value_parser = args::duration, global = true)]
    expires_in: Option<Duration>,
    /// How to print the result: text, or one JSON object.
    #[arg(long, value_name = "FORMAT", default_value = "pretty", global = true)]
    output: Format,
}

#[derive(Args, Debug)]
pub(super) struct RetireArgs {
    #[command(subcommand)]
    target: RetireTarget,
    #[command(flatten)]
    file: FileArgs,
}

#[derive(Args, Debug)]
struct FileArgs {
    /// The credentials file. It is replaced as a whole, with the same owner and mode.
    #[arg(
        long,
        value_name = "PATH",
        env = "BLOBCAST_CREDENTIALS_FILE",
        global = true
    )]
    credentials_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum RotateTarget {
    /// The bearer token of a client.
    Client(Named),
    /// A token for callback URLs.
    Callback(Named),
    /// A key that signs callback URLs; URLs signed with the old secret stay valid as long as that
    /// secret.
    SigningKey(Named),
    /// The secret with which the vendor signs bodies; the vendor makes it.
    BodySignature(VendorSecret),
}

#[derive(Debug, Subcommand)]
enum RetireTarget {
    /// The previous bearer token of a client.
    Client(Named),
    /// The previous token for callback URLs.
    Callback(Named),
    /// The previous secret of a signing key; URLs signed with it are refused from then on.
    SigningKey(Named),
    /// The previous secret with which the vendor signed bodies.
    BodySignature,
}

#[derive(Args, Debug)]
struct Named {
    /// Name in the credentials file.
    name: String,
}

#[derive(Args, Debug)]
struct VendorSecret {
    /// File with the vendor's new secret; `-` is standard input.
    #[arg(long, value_name = "PATH")]
    secret_file: PathBuf,
}

pub(super) fn rotate(args: RotateArgs) -> anyhow::Result<ExitCode> {
    let Rotation {
        target,
        secret,
        text,
    } = Rotation::new(args.target)?;

    let now = Timestamp::now();
    let after = |duration: Option<Duration>, flag: &str| match duration {
        Some(duration) if duration < Duration::from_secs(1) => {
            Err(Usage(format!("{flag} is at least 1s")))
        }
        Some(duration) => now
            .checked_add(duration)
            .map(Some)
            .map_err(|_| Usage(format!("{flag} is too long"))),
        None => Ok(None),
    };

    let new = NewSecret {
        text,
        created: now,
        expires: after(args.expires_in, "--expires-in")?,
        previous_expires: after(args.keep_old_for, "--keep-old-for")?,
    };

    args.file
        .change(|text| credentials::rotate(text, &target, &new))?;

    let until = new
        .previous_expires
        .and_then(|until| Timestamp::from_second(until.as_second()).ok());
    match args.output {
        Format::Json => {
            output::emit_json(
                &json!({"secret": secret, "previous_expires": until.map(|it| it.to_string())}),
            )?;
        }
        Format::Pretty => {
            let new = secret
                .map(|secret| format!("The new one, shown only this once:\n\n  {secret}\n\n"))
                .unwrap_or_default();
            let until = match until {
                Some(until) => format!("until {until} at the latest"),
                None => "until it expires, or until `blobcast token retire` removes it".to_owned(),
            };
            output::emit(format!("{new}The old one is accepted beside it {until}.\n").as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What to rotate, and the new secret.
struct Rotation {
    target: Target,
    /// The secret to print; `None` for the vendor's, which the caller has already.
    secret: Option<String>,
    /// The secret or its hash, as the file has it.
    text: String,
}

impl Rotation {
    fn new(target: RotateTarget) -> anyhow::Result<Self> {
        Ok(match target {
            RotateTarget::Client(Named { name }) => Self::of_token(Target::Client(name)),
            RotateTarget::Callback(Named { name }) => Self::of_token(Target::CallbackToken(name)),
            RotateTarget::SigningKey(Named { name }) => {
                let secret = new_secret(false);
                Self {
                    target: Target::SigningKey(name),
                    secret: Some(secret.clone()),
                    text: secret,
                }
            }
            RotateTarget::BodySignature(VendorSecret { secret_file }) => Self {
                target: Target::BodySignature,
                secret: None,
                text: vendor_secret("--secret-file", &secret_file)?,
            },
        })
    }

    fn of_token(target: Target) -> Self {
        let secret = new_secret(true);
        Self {
            target,
            text: TokenHash::of(&secret).to_string(),
            secret: Some(secret),
        }
    }
}

pub(super) fn retire(args: RetireArgs) -> anyhow::Result<ExitCode> {
    let target = match args.target {
        RetireTarget::Client(Named { name }) => Target::Client(name),
        RetireTarget::Callback(Named { name }) => Target::CallbackToken(name),
        RetireTarget::SigningKey(Named { name }) => Target::SigningKey(name),
        RetireTarget::BodySignature => Target::BodySignature,
    };
    args.file
        .change(|text| credentials::retire(text, &target))?;
    output::emit_line("The old one is refused from now on.")?;
    Ok(ExitCode::SUCCESS)
}

/// A secret that the vendor has made, from the file that `flag` names.
pub(super) fn vendor_secret(flag: &str, path: &Path) -> anyhow::Result<String> {
    let is_stdin = path == Path::new("-");
    let read = if is_stdin {
        secret_of_stdin()
    } else {
        files::read_text(path, SECRET_BYTES_MAX)
    };
    let text = read.map_err(|error| unreadable(flag, path, &error))?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        bail!(
            "{flag} {} is empty: take the secret from your RunBlob account",
            path.display()
        );
    }
    Ok(secret.to_owned())
}

fn secret_of_stdin() -> io::Result<String> {
    let mut text = String::new();
    let count = io::stdin()
        .take(SECRET_BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    // Never cut it: a part of it would be another secret.
    if count as u64 > SECRET_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {SECRET_BYTES_MAX} bytes"),
        ));
    }
    Ok(text)
}

impl FileArgs {
    /// Replaces the file with the result of `change`; on an error it stays as it is.
    fn change(
        &self,
        change: impl FnOnce(&str) -> Result<String, credentials::RotationError>,
    ) -> anyhow::Result<()> {
        let named = "name the credentials file: --credentials-file, or BLOBCAST_CREDENTIALS_FILE";
        let path = self
            .credentials_file
            .as_ref()
            .ok_or_else(|| Usage(named.to_owned()))?;
        let shown = path.display();
        let unreadable = |error| unreadable("the credentials file", path, &error);
        // Resolves links, so that the link stays and its target is replaced.
        let path = path.canonicalize().map_err(unreadable)?;
        let text = files::read_text(&path, credentials::FILE_BYTES_MAX).map_err(unreadable)?;
        let changed = change(&text).with_context(|| shown.to_string())?;
        replace(&path, &text, &changed)
            .with_context(|| format!("cannot replace {shown}, which stays as it was"))
    }
}

/// Replaces the file by renaming a new one over it, so that a broker never reads a partial file.
fn replace(path: &Path, old: &str, new: &str) -> anyhow::Result<()> {
    let name = path.file_name().context("it is no file")?.to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}", Uuid::new_v4().simple()));
    let written = write_beside(path, &beside, old, new);
    if written.is_err() {
        let _ = fs::remove_file(&beside).is_ok(); // it may not exist
    }
    written
}

fn write_beside(path: &Path, beside: &Path, old: &str, new: &str) -> anyhow::Result<()> {
    let before = fs::metadata(path)?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(beside)?;

    let made = file.metadata()?;
    if (made.uid(), made.gid()) != (before.uid(), before.gid()) {
        let owner = "its owner cannot be kept: run this as root, or as the file's owner";
        fchown(&file, Some(before.uid()), Some(before.gid())).context(owner)?;
    }

    file.set_permissions(fs::Permissions::from_mode(before.mode() & 0o7777))?;
    file.write_all(new.as_bytes())?;
    file.sync_all()?;
    if files::read_text(path, credentials::FILE_BYTES_MAX)? != old {
        bail!("another process changed it meanwhile: try again");
    }

    fs::rename(beside, path)?;
    // The secret that is printed next must survive a power cut. Not every file system can sync
    // directories.
    let _ = path
        .parent()
        .is_some_and(|directory| File::open(directory).and_then(|it| it.sync_all()).is_ok());
    Ok(())
}
