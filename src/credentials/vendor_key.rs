//! The lines of `[[vendor_keys]]`: keys with which the broker asks the vendor's API about tasks. Pure: the code that reads the
//! credentials file reads the files of `key_file`, too.
//!
//! A key stands in full, in the file or in one beside it, because it has to be sent. It is shown by nothing, `Debug` included.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;

use super::{
    binding::{Products, products},
    callback_lines::KeyId,
};

/// Most lines. Each has a budget of requests of its own, and a series of a metric.
pub const VENDOR_KEYS_MAX: usize = 64;
/// Longest key in bytes, many times those that are known.
pub const API_KEY_BYTES_MAX: usize = 1_024;

/// A key for the vendor's API.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(Arc<str>);

impl ApiKey {
    /// Takes `text` if it can stand in a header: printable ASCII without spaces. A line break at its end, as in a file, is left out.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_end_matches(['\r', '\n']);
        let fits = (1..=API_KEY_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self(text.into()))
    }

    /// The key itself, for the header of a request and nothing else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// A key that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VendorKey {
    /// The name in logs and metrics.
    pub name: Arc<str>,
    /// The products whose tasks it is used for.
    pub products: Products,
    /// What the vendor knows it by.
    pub key: ApiKey,
}

/// One line of `[[vendor_keys]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VendorKeyLine {
    pub name: KeyId,
    pub products: Products,
    pub key_file: Option<PathBuf>,
    /// `None` until `key_file` has been read.
    pub key: Option<ApiKey>,
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table, as `blobcast token new vendor-key` prints it"
)]
pub(super) struct RawVendorKey {
    pub name: toml::Spanned<String>,
    key: Option<String>,
    key_file: Option<PathBuf>,
    products: Option<Vec<String>>,
}

/// Why a key cannot be used. Never repeats it.
const NO_KEY: &str = "the key is not 1 to 1024 printable characters without spaces: copy it from your RunBlob account";

/// Parses one line.
pub(super) fn vendor_key(raw: &RawVendorKey) -> Result<VendorKeyLine, String> {
    let name = KeyId::parse(raw.name.get_ref())
        .ok_or("a name has 1 to 32 characters of a-z, A-Z, 0-9, '.', '_' and '-'")?;
    let (key, key_file) = match (&raw.key, &raw.key_file) {
        (Some(key), None) => (Some(ApiKey::parse(key).ok_or(NO_KEY)?), None),
        (None, Some(path)) if !path.as_os_str().is_empty() => (None, Some(path.clone())),
        _ => return Err("needs either `key` or `key_file`".to_owned()),
    };
    let products = match raw.products.as_deref() {
        None => Products::All,
        Some([]) => {
            return Err(
                "`products` is empty, so the key would be used for nothing: name some, or leave it out"
                    .to_owned(),
            );
        }
        Some(some) => products(some)?,
    };
    Ok(VendorKeyLine {
        name,
        products,
        key_file,
        key,
    })
}

/// Checks a line beside those before it. Two lines with one key would use the vendor's limit for it twice.
pub(super) fn check_beside(line: &VendorKeyLine, before: &[VendorKeyLine]) -> Result<(), String> {
    if before.len() >= VENDOR_KEYS_MAX {
        return Err(format!(
            "is one too many: there are at most {VENDOR_KEYS_MAX} lines, so remove those that are not used"
        ));
    }
    if before.iter().any(|other| other.name == line.name) {
        return Err("has the name of an earlier line: give each its own".to_owned());
    }
    let is_same = |other: &&VendorKeyLine| {
        line.key.is_some() && other.key == line.key
            || line.key_file.is_some() && other.key_file == line.key_file
    };
    match before.iter().find(is_same) {
        Some(other) => Err(format!(
            "has the same key as {}: write one line with the `products` of both",
            other.name
        )),
        None => Ok(()),
    }
}

/// All lines, in the order of the file: the first that fits a product is used for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VendorKeyLines(pub Vec<VendorKeyLine>);

impl VendorKeyLines {
    pub(super) fn key_files(&self) -> BTreeSet<PathBuf> {
        let files = self.0.iter().filter_map(|line| line.key_file.clone());
        files.collect()
    }

    /// Takes the keys from their files. `read` returns the content of one, or why it cannot be read.
    pub(super) fn read_files<E>(
        &mut self,
        read: impl Fn(&Path) -> Result<String, E>,
        wrong: impl Fn(&KeyId, &Path, String) -> E,
    ) -> Result<(), E> {
        for index in 0..self.0.len() {
            let Some(path) = self.0[index].key_file.clone() else {
                continue;
            };
            let name = self.0[index].name.clone();
            let text = read(&path)?;
            let key = ApiKey::parse(&text).ok_or_else(|| wrong(&name, &path, NO_KEY.to_owned()))?;

            let mut others = self.0.iter().filter(|other| other.name != name);
            if let Some(other) = others.find(|other| other.key.as_ref() == Some(&key)) {
                let problem = format!(
                    "has the same key as {}: write one line with the `products` of both",
                    other.name
                );
                return Err(wrong(&name, &path, problem));
            }
            self.0[index].key = Some(key);
        }
        Ok(())
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = VendorKey> {
        self.0.iter().filter_map(|line| {
            Some(VendorKey {
                name: Arc::clone(line.name.name()),
                products: line.products.clone(),
                key: line.key.clone()?,
            })
        })
    }
}
