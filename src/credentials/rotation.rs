//! Rotation of secrets, as an edit of the credentials file's text. `rotate` puts a new secret beside the old one, `retire` removes
//! the old one. Everything else in the file keeps its bytes, comments and layout included. Pure.

use std::ops::Range;

use jiff::Timestamp;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    file::{self, CredentialsError},
    lookup::Credentials,
};

const PREVIOUS: &str = "previous";
const CREATED: &str = "created";
const EXPIRES: &str = "expires";

/// The line whose secret a rotation changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The token of the client with this name.
    Client(String),
    /// The callback token with this name.
    CallbackToken(String),
    /// The signing key with this name.
    SigningKey(String),
    /// The vendor's secret for body signatures.
    BodySignature,
}

impl Target {
    fn section(&self) -> &'static str {
        match self {
            Self::Client(_) => "clients",
            Self::CallbackToken(_) => "callback_tokens",
            Self::SigningKey(_) => "signing_keys",
            Self::BodySignature => "body_signature",
        }
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Client(name) | Self::CallbackToken(name) | Self::SigningKey(name) => Some(name),
            Self::BodySignature => None,
        }
    }

    /// The field that holds the secret or its hash.
    fn field(&self) -> &'static str {
        match self {
            Self::Client(_) | Self::CallbackToken(_) => "token",
            Self::SigningKey(_) | Self::BodySignature => "secret",
        }
    }
}

/// The secret that a rotation puts in force.
#[derive(Clone, Debug)]
pub struct NewSecret {
    /// The text for the file: the hash of a token, or the secret itself.
    pub text: String,
    /// When the secret was made; the file stores whole seconds.
    pub created: Timestamp,
    /// The new secret is refused from this moment on; `None`: never.
    pub expires: Option<Timestamp>,
    /// The old secret is refused from this moment on, or from its own earlier expiry; `None`: it keeps its expiry.
    pub previous_expires: Option<Timestamp>,
}

/// The file cannot be changed as asked. It is left as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// The file has mistakes already.
    #[error(transparent)]
    Unusable(#[from] CredentialsError),
    /// The table has no line of that name.
    #[error("[{0}] has no such name: correct it, or let `blobcast token new` make a line for it")]
    Unknown(&'static str),
    /// The client uses a certificate, which its authority has to issue.
    #[error("it uses a certificate: have its authority issue another one for the same name")]
    NoToken,
    /// The previous secret is still accepted. A line holds two, so a third would lock out the users of the oldest.
    #[error(
        "the previous secret is still accepted, and a line can hold only two: when nothing uses the previous one any more, remove \
         it with `blobcast token retire`, and rotate again"
    )]
    Rotating,
    /// The line has no previous secret.
    #[error(
        "there is no previous secret to retire: `blobcast token rotate` makes a new one and keeps the old one as previous"
    )]
    NoPrevious,
    /// The file has no table `[body_signature]`.
    #[error(
        "it has no [body_signature]: write that line, and below it `secret = \"…\"` from your RunBlob account"
    )]
    NoBodySignature,
    /// The line is valid TOML in a form that the editor does not handle.
    #[error(
        "its entry is written in an unusual way: write it as `blobcast token new` prints it, and try again"
    )]
    Form,
}

/// The file with `new` as the secret of `target`, and the old secret as `previous`.
pub fn rotate(text: &str, target: &Target, new: &NewSecret) -> Result<String, RotationError> {
    change(text, |document| {
        let mut entry = TomlEntry::find(text, document, target)?;
        if let Some(previous) = entry.value(PREVIOUS) {
            if !is_over(previous, new.created) {
                return Err(RotationError::Rotating);
            }
            entry.remove(PREVIOUS)?;
        }

        let mut old = vec![(target.field(), entry.secret()?.to_owned())];
        old.extend(
            entry
                .text(CREATED)
                .map(|created| (CREATED, created.to_owned())),
        );
        let expires = match (new.previous_expires, entry.time(EXPIRES)) {
            (Some(wanted), Some(given)) => Some(wanted.min(given)),
            (wanted, given) => wanted.or(given),
        };
        old.extend(expires.map(|expires| (EXPIRES, seconds(expires))));
        let old = old
            .iter()
            .map(|(key, value)| format!("{key} = {value}"))
            .collect::<Vec<_>>()
            .join(", ");

        entry.set(
            target.field(),
            &toml::Value::from(new.text.as_str()).to_string(),
        )?;
        entry.set(CREATED, &seconds(new.created))?;
        match new.expires {
            Some(expires) => entry.set(EXPIRES, &seconds(expires))?,
            None => entry.remove(EXPIRES)?,
        }
        entry.set(PREVIOUS, &format!("{{ {old} }}"))?;
        Ok(entry.edits)
    })
}

/// The file without the previous secret of `target`.
pub fn retire(text: &str, target: &Target) -> Result<String, RotationError> {
    change(text, |document| {
        let mut entry = TomlEntry::find(text, document, target)?;
        entry.value(PREVIOUS).ok_or(RotationError::NoPrevious)?;
        entry.remove(PREVIOUS)?;
        Ok(entry.edits)
    })
}

/// Applies `edits` to a valid file, and checks that the result is valid too.
fn change(
    text: &str,
    edits: impl FnOnce(&DeTable<'_>) -> Result<Vec<(Range<usize>, String)>, RotationError>,
) -> Result<String, RotationError> {
    Credentials::parse(text)?;
    let document = DeTable::parse(text).map_err(|_| RotationError::Form)?;
    let mut edits = edits(document.get_ref())?;

    // From the end, so that earlier ranges keep their offsets. Of edits at one offset, removals come first.
    edits.sort_by_key(|(range, _)| (range.start, range.end));
    let mut changed = text.to_owned();
    for (range, new) in edits.into_iter().rev() {
        changed.replace_range(range, &new);
    }

    Credentials::parse(&changed).map_err(|_| RotationError::Form)?;
    Ok(changed)
}

fn is_over(previous: &DeValue<'_>, now: Timestamp) -> bool {
    let DeValue::Table(previous) = previous else {
        return false;
    };
    previous
        .get(EXPIRES)
        .and_then(|expires| time(expires.get_ref()))
        .is_some_and(|expires| expires <= now)
}

fn time(value: &DeValue<'_>) -> Option<Timestamp> {
    let DeValue::Datetime(time) = value else {
        return None;
    };
    file::timestamp(*time).ok()
}

fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second())
        .unwrap_or(time)
        .to_string()
}

/// One field of an entry, with the ranges of its key and value in the file's text.
struct Field<'a> {
    key: Range<usize>,
    name: &'a str,
    at: Range<usize>,
    value: &'a DeValue<'a>,
}

/// The target's entry in the file, and the edits that were collected for it.
struct TomlEntry<'a> {
    text: &'a str,
    /// In the order of the file.
    fields: Vec<Field<'a>>,
    /// The entry is an inline table `{ … }`, not a section of its own.
    is_inline: bool,
    /// The name of the field that holds the secret.
    secret: &'static str,
    edits: Vec<(Range<usize>, String)>,
}

impl<'a> TomlEntry<'a> {
    fn find(
        text: &'a str,
        document: &'a DeTable<'a>,
        target: &Target,
    ) -> Result<Self, RotationError> {
        let unknown = match target {
            Target::BodySignature => RotationError::NoBodySignature,
            named => RotationError::Unknown(named.section()),
        };
        let table = |value: Option<&'a Spanned<DeValue<'a>>>| match value
            .map(|value| (value.span(), value.get_ref()))
        {
            Some((span, DeValue::Table(table))) => Some((span, table)),
            _ => None,
        };
        let section = table(document.get(target.section())).ok_or_else(|| unknown.clone())?;
        let (span, entry) = match target.name() {
            Some(name) => table(section.1.get(name)).ok_or(unknown)?,
            None => section,
        };

        let field = |(key, value): (
            &'a Spanned<toml::de::DeString<'a>>,
            &'a Spanned<DeValue<'a>>,
        )| Field {
            key: key.span(),
            name: key.get_ref().as_ref(),
            at: value.span(),
            value: value.get_ref(),
        };
        let mut fields: Vec<_> = entry.iter().map(field).collect();
        fields.sort_by_key(|field| field.key.start);

        let is_inline = text[span].starts_with('{');
        Ok(Self {
            text,
            fields,
            is_inline,
            secret: target.field(),
            edits: Vec::new(),
        })
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| field.name == name)
    }

    fn value(&self, name: &str) -> Option<&'a DeValue<'a>> {
        self.position(name).map(|at| self.fields[at].value)
    }

    /// The value of a field as it is written in the file.
    fn text(&self, name: &str) -> Option<&'a str> {
        self.position(name)
            .map(|at| &self.text[self.fields[at].at.clone()])
    }

    fn time(&self, name: &str) -> Option<Timestamp> {
        self.value(name).and_then(time)
    }

    fn secret(&self) -> Result<&'a str, RotationError> {
        self.text(self.secret).ok_or(RotationError::NoToken)
    }

    /// Replaces the value of a field, or inserts a new field after the secret.
    fn set(&mut self, name: &str, value: &str) -> Result<(), RotationError> {
        let edit = match self.position(name) {
            // A field that an earlier edit removed is inserted again.
            Some(at) if !self.is_removed(at) => (self.fields[at].at.clone(), value.to_owned()),
            _ => {
                let secret = self.position(self.secret).ok_or(RotationError::NoToken)?;
                if self.is_inline {
                    let end = self.fields[secret].at.end;
                    (end..end, format!(", {name} = {value}"))
                } else {
                    let end = self.line(secret)?.end;
                    let before = if self.text[..end].ends_with('\n') {
                        ""
                    } else {
                        "\n"
                    };
                    (end..end, format!("{before}{name} = {value}\n"))
                }
            }
        };

        // Two insertions at one offset become one edit, in the order of the calls.
        match self
            .edits
            .iter_mut()
            .find(|(range, _)| range.is_empty() && *range == edit.0)
        {
            Some((_, text)) => text.push_str(&edit.1),
            None => self.edits.push(edit),
        }
        Ok(())
    }

    fn is_removed(&self, at: usize) -> bool {
        let key = self.fields[at].key.start;
        self.edits
            .iter()
            .any(|(range, new)| new.is_empty() && range.contains(&key))
    }

    /// Removes a field if it is present. Never called for the secret.
    fn remove(&mut self, name: &str) -> Result<(), RotationError> {
        let Some(at) = self.position(name) else {
            return Ok(());
        };
        let range = if !self.is_inline {
            self.line(at)?
        } else if at > 0 {
            self.fields[at - 1].at.end..self.fields[at].at.end
        } else {
            let next = self.fields.get(1).ok_or(RotationError::Form)?;
            self.fields[at].key.start..next.key.start
        };
        self.edits.push((range, String::new()));
        Ok(())
    }

    /// The range of whole lines that a field of a section takes, which it must not share with anything before it.
    fn line(&self, at: usize) -> Result<Range<usize>, RotationError> {
        let Field { key, at: value, .. } = &self.fields[at];
        let start = self.text[..key.start].rfind('\n').map_or(0, |end| end + 1);
        let end = self.text[value.end..]
            .find('\n')
            .map_or(self.text.len(), |end| value.end + end + 1);
        let is_alone = self.text[start..key.start].trim().is_empty();
        is_alone.then_some(start..end).ok_or(RotationError::Form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{TokenHash, new_secret};

    const NOW: &str = "2026-05-01T00:00:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn new(text: &str) -> NewSecret {
        NewSecret {
            text: text.to_owned(),
            created: at(NOW),
            expires: None,
            previous_expires: None,
        }
    }

    fn hash(token: &str) -> String {
        TokenHash::of(token).to_string()
    }

    fn client() -> Target {
        Target::Client("billing".to_owned())
    }

    fn lets_in(text: &str, token: &str, now: &str) -> bool {
        Credentials::parse(text)
            .unwrap()
            .client_of_token(token, at(now))
            .is_some()
    }

    #[test]
    fn both_tokens_are_good_until_the_old_one_is_retired_and_the_rest_of_the_file_stays() {
        let rest = "[callback_tokens] # ours\n\n[signing_keys]\n# none yet\n";
        for (entry, rotated) in [
            (
                "[clients]\nbilling = { token = \"OLD\", products = [\"veo\"], created = 2026-01-31 } # theirs\n",
                "[clients]\nbilling = { token = \"NEW\", previous = { token = \"OLD\", created = 2026-01-31 }, products = [\"veo\"], \
                 created = 2026-05-01T00:00:00Z } # theirs\n",
            ),
            (
                "[clients.billing]\n# theirs\n  token = \"OLD\" # for now\nproducts = [\"veo\"]\nexpires = 2027-01-31\n",
                "[clients.billing]\n# theirs\n  token = \"NEW\" # for now\ncreated = 2026-05-01T00:00:00Z\n\
                 previous = { token = \"OLD\", expires = 2027-01-31T00:00:00Z }\nproducts = [\"veo\"]\n",
            ),
        ] {
            let secrets = |text: &str| {
                text.replace("OLD", &hash("old"))
                    .replace("NEW", &hash("new"))
            };
            let text = format!("{}{rest}", secrets(entry));
            let both = rotate(&text, &client(), &new(&hash("new"))).unwrap();
            assert_eq!(both, format!("{}{rest}", secrets(rotated)));
            assert!(lets_in(&both, "old", NOW) && lets_in(&both, "new", NOW));
            assert_eq!(
                rotate(&both, &client(), &new(&hash("third"))),
                Err(RotationError::Rotating)
            );

            let one = retire(&both, &client()).unwrap();
            assert!(
                !lets_in(&one, "old", NOW) && lets_in(&one, "new", NOW),
                "{one}"
            );
            assert_eq!(retire(&one, &client()), Err(RotationError::NoPrevious));
        }
    }

    #[test]
    fn an_old_secret_expires_as_asked_and_never_later_than_before() {
        let text = format!(
            "[clients]\nbilling = {{ token = \"{}\", products = [\"*\"], expires = 2026-06-01 }}",
            hash("old")
        );
        for (wanted, until) in [
            ("2026-05-08T00:00:00Z", "2026-05-08T00:00:00Z"),
            ("2027-01-01T00:00:00Z", "2026-06-01T00:00:00Z"),
        ] {
            let new = NewSecret {
                previous_expires: Some(at(wanted)),
                expires: Some(at("2028-01-01T00:00:00Z")),
                ..new(&hash("new"))
            };
            let both = rotate(&text, &client(), &new).unwrap();
            let before = (at(until) - jiff::SignedDuration::from_secs(1)).to_string();
            assert!(
                lets_in(&both, "old", &before) && !lets_in(&both, "old", until),
                "{both}"
            );
            assert!(
                lets_in(&both, "new", "2027-12-31T00:00:00Z")
                    && !lets_in(&both, "new", "2028-01-01T00:00:00Z")
            );
            // An expired previous secret makes room for the next.
            let later = NewSecret {
                created: at(until),
                ..new.clone()
            };
            let later = NewSecret {
                text: hash("third"),
                previous_expires: None,
                ..later
            };
            let next = rotate(&both, &client(), &later).unwrap();
            assert!(
                lets_in(&next, "new", until)
                    && lets_in(&next, "third", until)
                    && !lets_in(&next, "old", NOW),
                "{next}"
            );
        }
    }

    #[test]
    fn every_kind_of_secret_can_be_rotated() {
        let (old, fresh) = (new_secret(false), new_secret(false));
        let text = format!(
            "[callback_tokens]\n\"run blob\" = {{ token = \"{}\", bytes_per_minute_max = \"1MiB\" }}\n\
             [signing_keys]\nk1 = {{ secret = \"{old}\" }}\n[body_signature]\nsecret = \"hunter2\"\n",
            hash("old")
        );
        let text = rotate(
            &text,
            &Target::CallbackToken("run blob".to_owned()),
            &new(&hash("new")),
        )
        .unwrap();
        let text = rotate(&text, &Target::SigningKey("k1".to_owned()), &new(&fresh)).unwrap();
        let text = rotate(&text, &Target::BodySignature, &new("hunter\"3")).unwrap();
        let credentials = Credentials::parse(&text).unwrap();
        for token in ["old", "new"] {
            assert_eq!(
                credentials
                    .callback_token(token, at(NOW))
                    .map(|(name, _)| &**name),
                Some("run blob")
            );
        }
        assert_eq!(credentials.callback_token_budget("run blob"), Some(1 << 20));
        let tag = |secret: &str| {
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
            ring::hmac::sign(&key, b"body").as_ref().to_vec()
        };
        use crate::credentials::Generation::{Current, Previous};
        assert_eq!(
            credentials.verify_body(b"body", &tag("hunter2"), at(NOW)),
            Some(Previous)
        );
        assert_eq!(
            credentials.verify_body(b"body", &tag("hunter\"3"), at(NOW)),
            Some(Current)
        );
        assert_eq!(
            credentials.verify_body(b"body", &tag("hunter"), at(NOW)),
            None
        );
        let one = retire(&text, &Target::BodySignature).unwrap();
        assert_eq!(
            Credentials::parse(&one)
                .unwrap()
                .verify_body(b"body", &tag("hunter2"), at(NOW)),
            None
        );
    }

    #[test]
    fn an_impossible_rotation_is_an_error_and_changes_nothing() {
        let hash = hash("old");
        let certified = "[clients]\nbilling = { certificate = \"b\", products = [\"*\"] }";
        let dotted = format!("[clients]\nbilling.token = \"{hash}\"\nbilling.products = [\"*\"]\n");
        for (text, error) in [
            ("", RotationError::Unknown("clients")),
            ("[clients]\n", RotationError::Unknown("clients")),
            (certified, RotationError::NoToken),
            (dotted.as_str(), RotationError::Form),
        ] {
            assert_eq!(rotate(text, &client(), &new(&hash)), Err(error), "{text}");
        }
        for change in [
            rotate("", &Target::BodySignature, &new("hunter2")),
            retire("[clients]", &Target::BodySignature),
        ] {
            assert_eq!(change, Err(RotationError::NoBodySignature));
        }
        assert!(matches!(
            rotate("nonsense", &client(), &new(&hash)),
            Err(RotationError::Unusable(_))
        ));
    }
}
