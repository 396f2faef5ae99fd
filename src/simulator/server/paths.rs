//! The paths of the vendor's API, and which products are behind them. Pure.
//!
//! Written down from the vendor's pages a second time, beside `reconcile::paths`: a mistake there must not be one here, too.

use std::borrow::Cow;

use hyper::Method;
use percent_encoding::percent_decode_str;

/// Where the documentation puts each product: the part between `/v1/` and `/generate`.
const PATHS: [(&str, &str); 10] = [
    ("veo", "veo"),
    ("kling", "kling"),
    ("kling-o1-video", "kling/o1-video"),
    ("kling-o3-video", "kling/o3-video"),
    ("kling-o1-photo", "kling/o1-photo"),
    ("kling-o3-photo", "kling/o3-photo"),
    ("gemini", "gemini"),
    ("chatgpt-images", "chatgpt-images"),
    ("sora", "sora"),
    ("seedance", "seedance"),
];
/// The products that have a list of their recent tasks.
const LISTED: [&str; 5] = ["gemini", "veo", "kling", "chatgpt-images", "sora"];
/// The product whose documented status path ends in a slash.
const ENDS_IN_SLASH: &str = "sora";

/// Tasks on one page of a list, where the request does not say.
const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 100;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// A new task of a product.
    Generate { product: String },
    /// One task.
    Task { product: String, id: String },
    /// A page of the recent tasks of a product.
    List {
        product: String,
        limit: usize,
        offset: usize,
    },
    /// The same path with or without its last slash, as a web framework answers.
    Elsewhere { path: String },
    /// A page of a list whose limit or offset cannot be.
    BadPage,
    /// The path is known, but not with this method.
    BadMethod { allowed: &'static str },
    /// No such path.
    Unknown,
}

/// Reads a request's method and target.
pub(super) fn route(method: &Method, path: &str, query: Option<&str>) -> Route {
    let Some(rest) = path.strip_prefix("/v1/") else {
        return Route::Unknown;
    };
    if let Some(path) = rest.strip_suffix("/generate") {
        return match product_at(path) {
            _ if !is_documented(path) => Route::Unknown,
            product if method == Method::POST => Route::Generate { product },
            _ => Route::BadMethod { allowed: "POST" },
        };
    }

    let is_get = method == Method::GET;
    if let Some(path) = rest.strip_suffix("/generations") {
        let product = product_at(path);
        return match page(query) {
            _ if !LISTED.contains(&product.as_str()) => Route::Unknown,
            _ if !is_get => Route::BadMethod { allowed: "GET" },
            None => Route::BadPage,
            Some((limit, offset)) => Route::List {
                product,
                limit,
                offset,
            },
        };
    }

    let Some((path, id)) = rest.split_once("/generations/") else {
        return Route::Unknown;
    };
    let product = product_at(path);
    let has_slash = id.ends_with('/');
    let id = id.strip_suffix('/').unwrap_or(id);
    if id.is_empty() || id.contains('/') {
        return Route::Unknown;
    }
    if !is_get {
        return Route::BadMethod { allowed: "GET" };
    }
    if has_slash != (product == ENDS_IN_SLASH) {
        let slash = if has_slash { "" } else { "/" };
        return Route::Elsewhere {
            path: format!("/v1/{path}/generations/{id}{slash}"),
        };
    }
    let id = percent_decode_str(id).decode_utf8_lossy().into_owned();
    Route::Task { product, id }
}

/// The paths under which tasks are created, for the hint about a mistyped one.
pub(super) fn generate_paths() -> Vec<String> {
    PATHS
        .iter()
        .map(|(_, path)| format!("/v1/{path}/generate"))
        .collect()
}

fn is_documented(path: &str) -> bool {
    PATHS.iter().any(|&(_, documented)| documented == path)
}

/// A path that is not documented stands for the product of that name: a new product, that tests may add tasks of.
fn product_at(path: &str) -> String {
    let product = PATHS
        .iter()
        .find(|&&(_, documented)| documented == path)
        .map_or(path, |&(product, _)| product);
    product.to_owned()
}

/// `limit` and `offset`, or `None` if they cannot be.
fn page(query: Option<&str>) -> Option<(usize, usize)> {
    let (mut limit, mut offset) = (LIMIT_DEFAULT, 0);
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let number = |value: Cow<'_, str>| value.parse().ok();
        match &*key {
            "limit" => limit = number(value)?,
            "offset" => offset = number(value)?,
            _ => {}
        }
    }
    (1..=LIMIT_MAX).contains(&limit).then_some((limit, offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vendor::sample::PRODUCTS;

    fn get(target: &str) -> Route {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        route(&Method::GET, path, query)
    }

    fn task(product: &str, id: &str) -> Route {
        Route::Task {
            product: product.into(),
            id: id.into(),
        }
    }

    #[test]
    fn every_product_with_a_documented_body_has_a_path() {
        assert_eq!(PATHS.map(|(product, _)| product), PRODUCTS);
        for path in generate_paths() {
            assert!(
                matches!(route(&Method::POST, &path, None), Route::Generate { .. }),
                "{path}"
            );
        }
    }

    #[test]
    fn a_task_is_found_by_its_path() {
        assert_eq!(get("/v1/veo/generations/a-1"), task("veo", "a-1"));
        assert_eq!(
            get("/v1/kling/o1-photo/generations/photo-5"),
            task("kling-o1-photo", "photo-5")
        );
        assert_eq!(get("/v1/veo/generations/a%2Fb%3F"), task("veo", "a/b?"));
        assert_eq!(get("/v1/new-one/generations/a"), task("new-one", "a"));
        for wrong in [
            "/v1/veo/generations/",
            "/v1/veo/generations/a/b",
            "/v1/veo",
            "/v2/veo/generations/a",
            "/",
        ] {
            assert_eq!(get(wrong), Route::Unknown, "{wrong}");
        }
    }

    #[test]
    fn a_path_with_the_other_end_leads_to_the_documented_one() {
        let elsewhere = |path: &str| Route::Elsewhere { path: path.into() };
        assert_eq!(get("/v1/sora/generations/a/"), task("sora", "a"));
        assert_eq!(
            get("/v1/sora/generations/a"),
            elsewhere("/v1/sora/generations/a/")
        );
        assert_eq!(
            get("/v1/veo/generations/a%20b/"),
            elsewhere("/v1/veo/generations/a%20b")
        );
    }

    #[test]
    fn a_page_has_1_to_100_tasks() {
        let list = |limit, offset| Route::List {
            product: "gemini".into(),
            limit,
            offset,
        };
        assert_eq!(get("/v1/gemini/generations"), list(50, 0));
        assert_eq!(
            get("/v1/gemini/generations?limit=100&offset=7"),
            list(100, 7)
        );
        assert_eq!(get("/v1/gemini/generations?limit=1&x=y"), list(1, 0));
        for query in ["limit=0", "limit=101", "limit=x", "offset=-1"] {
            assert_eq!(
                get(&format!("/v1/gemini/generations?{query}")),
                Route::BadPage,
                "{query}"
            );
        }
        // Not every product has a list.
        assert_eq!(get("/v1/seedance/generations"), Route::Unknown);
        assert_eq!(get("/v1/kling/o1-video/generations"), Route::Unknown);
    }

    #[test]
    fn tasks_are_posted_and_answers_are_fetched() {
        let post = |path| route(&Method::POST, path, None);
        assert_eq!(
            get("/v1/veo/generate"),
            Route::BadMethod { allowed: "POST" }
        );
        assert_eq!(
            post("/v1/veo/generations"),
            Route::BadMethod { allowed: "GET" }
        );
        assert_eq!(
            post("/v1/veo/generations/a"),
            Route::BadMethod { allowed: "GET" }
        );
        assert_eq!(post("/v1/unknown/generate"), Route::Unknown);
    }
}
