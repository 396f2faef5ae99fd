//! The files of the console: part of the program, so that a broker serves the pages of its own version and needs nothing beside it.

use std::{collections::HashMap, sync::LazyLock};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::digest;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! files {
    ($($kind:ident: $($path:literal)*;)*) => {
        &[$($(($path, $kind, include_str!(concat!("assets/", $path))),)*)*]
    };
}

/// Path below `/ui/`, media type, text.
const FILES: &[(&str, &str, &str)] = files! {
    HTML: "index.html";
    SVG: "icon.svg";
    CSS: "base.css" "pages.css" "parts.css";
    JS: "api.js" "app.js" "chart.js" "commands.js" "dom.js" "event-row.js" "filter.js" "format.js" "list.js" "login.js" "media.js" "parts.js"
        "stream.js" "pages/cluster.js" "pages/configuration.js" "pages/events.js" "pages/expectations.js" "pages/live.js"
        "pages/overview.js" "pages/quarantine.js" "pages/refused.js" "pages/subscriptions.js" "pages/task.js" "pages/urls.js";
};

static ASSETS: LazyLock<HashMap<&'static str, Asset>> = LazyLock::new(|| {
    let asset = |&(path, content_type, text): &(&'static str, &'static str, &'static str)| {
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        let etag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(&hash.as_ref()[..12]));
        let asset = Asset {
            content_type,
            text,
            etag,
        };
        (path, asset)
    };
    FILES.iter().map(asset).collect()
});

/// One file.
#[derive(Debug)]
pub(crate) struct Asset {
    pub content_type: &'static str,
    pub text: &'static str,
    /// Of the content, so that a browser asks again after an upgrade only.
    pub etag: String,
}

/// The file at a path below `/ui/`; the page itself at the empty one.
pub(crate) fn asset(path: &str) -> Option<&'static Asset> {
    ASSETS.get(if path.is_empty() { "index.html" } else { path })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn on_disk(directory: &Path, found: &mut Vec<String>, root: &Path) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                on_disk(&path, found, root);
            } else {
                let path = path.strip_prefix(root).unwrap();
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }

    #[test]
    fn every_file_is_in_the_table_and_none_is_long() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/console/assets");
        let mut found = Vec::new();
        on_disk(&root, &mut found, &root);
        found.sort();
        let mut listed: Vec<_> = FILES.iter().map(|(path, ..)| (*path).to_owned()).collect();
        listed.sort();
        assert_eq!(listed, found);

        for (path, _, text) in FILES {
            assert!(text.lines().count() < 400, "{path} is long");
        }
        let bytes: usize = FILES.iter().map(|(.., text)| text.len()).sum();
        assert!(bytes < 148 * 1024, "{bytes} bytes together");
    }

    #[test]
    fn no_file_makes_markup_of_text_or_names_another_site() {
        for (path, _, text) in FILES {
            for wrong in [
                "innerHTML",
                "outerHTML",
                "insertAdjacent",
                "document.write",
                "eval(",
                "style=",
                "new Function",
                "srcdoc",
            ] {
                assert!(!text.contains(wrong), "{path} has {wrong}");
            }
            let foreign = text.match_indices("https://").map(|(at, _)| &text[at..]);
            for url in foreign {
                assert!(
                    url.starts_with("https://cdn.runblob.io/videos/test.mp4"),
                    "{path} names {url:.60}"
                );
            }
        }
    }

    #[test]
    fn the_page_is_at_the_empty_path_and_tags_differ() {
        assert!(asset("").unwrap().text.contains("app.js"));
        assert!(asset("../mod.rs").is_none() && asset("pages/").is_none());
        assert_ne!(asset("app.js").unwrap().etag, asset("dom.js").unwrap().etag);
    }
}
