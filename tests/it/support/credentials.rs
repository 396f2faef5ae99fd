//! A credentials file for a broker, written with `blobcast token new` as an operator would.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use tempfile::TempDir;

use super::{Cli, Ran};

/// The file, and its lines by section.
pub struct CredentialsFile {
    directory: TempDir,
    sections: Vec<(String, String)>,
}

impl CredentialsFile {
    /// An empty one.
    pub fn new() -> Self {
        let file = Self {
            directory: tempfile::tempdir().unwrap(),
            sections: Vec::new(),
        };
        file.save();
        file
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("credentials.toml")
    }

    /// Adds the line that `blobcast token new WORDS` prints, and returns the secret.
    pub async fn add(&mut self, words: &str) -> String {
        let made = Cli::new(&format!("token new {words} --output json"))
            .run()
            .await
            .json_lines()
            .remove(0);
        let text = |key: &str| made[key].as_str().unwrap().to_owned();
        self.add_line(&text("section"), &text("line"));
        text("secret")
    }

    /// Adds a line.
    pub fn add_line(&mut self, section: &str, line: &str) {
        self.sections.push((section.to_owned(), line.to_owned()));
        self.save();
    }

    /// Runs `blobcast token WORDS` on the file, and returns its output.
    pub async fn change(&mut self, words: &str) -> Ran {
        let ran = Cli::new(&format!("token {words}"))
            .env("BLOBCAST_CREDENTIALS_FILE", self.path().display())
            .run()
            .await;
        ran.good();
        ran
    }

    /// Removes every line that contains a text.
    pub fn remove(&mut self, text: &str) {
        self.sections.retain(|(_, line)| !line.contains(text));
        self.save();
    }

    /// Replaces the file atomically.
    pub fn write(&self, text: &str) {
        let new = self.directory.path().join("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, Permissions::from_mode(0o600)).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    fn save(&self) {
        let names: std::collections::BTreeSet<_> =
            self.sections.iter().map(|(section, _)| section).collect();
        let section = |name: &String| {
            let lines = self
                .sections
                .iter()
                .filter(|(section, _)| section == name)
                .map(|(_, line)| line.as_str());
            format!("[{name}]\n{}\n", lines.collect::<Vec<_>>().join("\n"))
        };
        self.write(&names.into_iter().map(section).collect::<String>());
    }
}
