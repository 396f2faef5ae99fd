//! `credentials`: lists the names in a broker's credentials file, with rights, expiry and last use.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    client::GrpcArgs,
    output::{self, Format, note},
    render::{clock, instant, name, time_json},
};
use crate::wire::v1;

/// Lists the tokens, keys and clients that a broker knows: names, rights, expiry and last use. Never a secret.
#[derive(Args, Debug)]
#[command(after_help = "\
USED is when the credential was last accepted since the broker started. During a rotation the \
previous secret has a row of its own, with what is left to be moved to the new one.

Examples:
  blobcast credentials
  blobcast credentials --kind client --output json

Exit codes: 0 done; 1 an error; 2 usage.")]
pub(super) struct CredentialsArgs {
    /// Only those of this kind.
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
    /// How to print the list: a table, or one JSON object a line.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

/// What a credential lets in.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Callbacks, by a token in the URL.
    CallbackToken,
    /// Callbacks, by a signature of the URL.
    SigningKey,
    /// Callbacks, by a signature of the body.
    BodySignature,
    /// Clients of the API.
    Client,
    /// The broker, at the vendor's API.
    VendorKey,
}

impl From<Kind> for v1::CredentialKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::CallbackToken => Self::CallbackToken,
            Kind::SigningKey => Self::SigningKey,
            Kind::BodySignature => Self::BodySignature,
            Kind::Client => Self::Client,
            Kind::VendorKey => Self::VendorKey,
        }
    }
}

pub(super) async fn run(args: CredentialsArgs) -> anyhow::Result<ExitCode> {
    let mut client = args.grpc.admin()?;
    let kind = args
        .kind
        .map_or(v1::CredentialKind::Unspecified, Into::into);
    let mut request = v1::ListCredentialsRequest {
        kind: kind.into(),
        ..v1::ListCredentialsRequest::default()
    };

    let (mut rows, now) = (Vec::new(), Timestamp::now());
    loop {
        let answer = client.list_credentials(request.clone()).await;
        let page = answer
            .map_err(|status| args.grpc.error(&status))?
            .into_inner();
        for credential in &page.credentials {
            match args.output {
                Format::Json => output::emit_json(&as_json(credential))?,
                Format::Pretty => rows.extend(rows_of(credential, now)),
            }
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }

    if args.output == Format::Pretty && rows.is_empty() {
        note("the broker knows no such credential");
    } else if args.output == Format::Pretty {
        let header = ["NAME", "KIND", "EXPIRES", "USED", "PRODUCTS", "RIGHTS"];
        output::emit_table(header, &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A row, and one of the previous secret if there is one.
fn rows_of(credential: &v1::Credential, now: Timestamp) -> Vec<[String; 6]> {
    let name = match &*credential.name {
        "" => "-",
        name => name,
    };
    let row = |name: String, expires, used| {
        [
            name,
            kind_word(credential.kind()).to_owned(),
            expiry(expires, now),
            time(used, now).unwrap_or_else(|| "-".to_owned()),
            credential.products.join(","),
            rights(credential),
        ]
    };
    let mut rows = vec![row(
        name.to_owned(),
        credential.expires_at,
        credential.last_used_at,
    )];
    if credential.has_previous {
        rows.push(row(
            format!("{name} (previous)"),
            credential.previous_expires_at,
            credential.previous_last_used_at,
        ));
    }
    rows
}

fn kind_word(kind: v1::CredentialKind) -> &'static str {
    match kind {
        v1::CredentialKind::Unspecified => "-",
        v1::CredentialKind::CallbackToken => "callback token",
        v1::CredentialKind::SigningKey => "signing key",
        v1::CredentialKind::BodySignature => "body signature",
        v1::CredentialKind::Client => "client",
        v1::CredentialKind::VendorKey => "vendor key",
    }
}

fn expiry(at: Option<prost_types::Timestamp>, now: Timestamp) -> String {
    let is_over = at.and_then(instant).is_some_and(|at| at <= now);
    match time(at, now) {
        None => "never".to_owned(),
        Some(time) if is_over => format!("{time}, over"),
        Some(time) => time,
    }
}

fn time(at: Option<prost_types::Timestamp>, now: Timestamp) -> Option<String> {
    Some(clock(at.and_then(instant)?, now))
}

/// `admin backup certificate=studio.internal team=ads bytes_per_minute_max=1048576`
fn rights(credential: &v1::Credential) -> String {
    let mut rights = Vec::new();
    rights.extend(credential.admin.then(|| "admin".to_owned()));
    rights.extend(credential.backup.then(|| "backup".to_owned()));
    if !credential.certificate_name.is_empty() {
        rights.push(format!("certificate={}", credential.certificate_name));
    }
    let mut labels: Vec<_> = credential
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.sort();
    rights.append(&mut labels);
    for (limit, value) in [
        ("bytes_per_minute_max", credential.bytes_per_minute_max),
        ("subscriptions_max", credential.subscriptions_max),
        ("task_ids_max", credential.task_ids_max),
    ] {
        rights.extend(value.map(|value| format!("{limit}={value}")));
    }
    if rights.is_empty() {
        "-".to_owned()
    } else {
        rights.join(" ")
    }
}

fn as_json(credential: &v1::Credential) -> Value {
    json!({
        "kind": name(credential.kind, v1::CredentialKind::as_str_name),
        "name": credential.name,
        "created_at": time_json(credential.created_at),
        "expires_at": time_json(credential.expires_at),
        "last_used_at": time_json(credential.last_used_at),
        "has_previous": credential.has_previous,
        "previous_expires_at": time_json(credential.previous_expires_at),
        "previous_last_used_at": time_json(credential.previous_last_used_at),
        "products": credential.products,
        "labels": credential.labels,
        "admin": credential.admin,
        "backup": credential.backup,
        "certificate_name": credential.certificate_name,
        "bytes_per_minute_max": credential.bytes_per_minute_max,
        "subscriptions_max": credential.subscriptions_max,
        "task_ids_max": credential.task_ids_max,
    })
}
