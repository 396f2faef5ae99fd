//! The known key that a misspelt one most likely means. Knows no key itself.

/// Similarity, of 1, that a suggestion needs. With a lower one `ingest.foo` would suggest a key at
/// random.
const SIMILARITY_MIN: f64 = 0.8;

/// The known key that `unknown` most likely means.
pub(super) fn nearest<'a>(
    unknown: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let mut best = None;
    for key in known {
        let similarity = similarity(unknown, key);
        // Strictly greater: the first of equals wins, in the order of the default file.
        if similarity >= SIMILARITY_MIN && best.is_none_or(|(_, most)| similarity > most) {
            best = Some((key, similarity));
        }
    }
    best.map(|(key, _)| key)
}

fn similarity(unknown: &str, key: &str) -> f64 {
    let (section, name) = unknown.rsplit_once('.').unwrap_or(("", unknown));
    let (known_section, known_name) = key.rsplit_once('.').unwrap_or(("", key));
    let by_part = 0.4 * strsim::jaro_winkler(section, known_section)
        + 0.6 * strsim::jaro_winkler(name, known_name);
    // `grpc_listen` for `grpc.listen`: the parts differ, the whole is similar.
    let whole = strsim::normalized_damerau_levenshtein(unknown, key);
    // A name that exists in another section; of several, the one in the most similar section.
    let misplaced = if name == known_name {
        0.9 + by_part / 10.0
    } else {
        0.0
    };
    by_part.max(whole).max(misplaced)
}
