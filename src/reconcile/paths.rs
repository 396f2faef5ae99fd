//! Where the vendor's status API has the tasks of each product, and by when a product's tasks end. Pure.
//!
//! Status: `/v1/PATH/generations/ID`. List: `/v1/PATH/generations?limit=100&offset=N`, for some products.

use std::{collections::BTreeMap, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::event::{Product, TaskId};

/// What stands in a path as it is (RFC 3986, unreserved). A slash or a question mark of an id would lead to another path.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What the vendor documents for a product.
struct Documented {
    product: &'static str,
    /// The path, and the slash that stands behind the id.
    path: &'static str,
    has_list: bool,
    /// The vendor's own limit for a task in minutes.
    limit_minutes: u64,
}

const fn documented(
    product: &'static str,
    path: &'static str,
    has_list: bool,
    limit_minutes: u64,
) -> Documented {
    Documented {
        product,
        path,
        has_list,
        limit_minutes,
    }
}

/// From the vendor's documentation. It states no limit for images and for seedance: an image takes seconds, a video no longer than
/// other videos.
const DOCUMENTED: [Documented; 10] = [
    documented("veo", "veo", true, 10),
    documented("kling", "kling", true, 15),
    documented("kling-o1-video", "kling/o1-video", false, 15),
    documented("kling-o3-video", "kling/o3-video", false, 15),
    documented("kling-o1-photo", "kling/o1-photo", false, 15),
    documented("kling-o3-photo", "kling/o3-photo", false, 15),
    documented("gemini", "gemini", true, 1),
    documented("chatgpt-images", "chatgpt-images", true, 1),
    documented("sora", "sora/", true, 15),
    documented("seedance", "seedance", false, 15),
];

/// The limit of a product that the vendor does not document here.
const LIMIT_MINUTES: u64 = 15;
/// From the vendor's limit until its callback should have come: some of its attempts.
const CALLBACK_MINUTES: u64 = 2;

/// By when a task of the product should have ended, if nobody says otherwise.
pub fn expect_within(product: &Product) -> Duration {
    let limit = of(product).map_or(LIMIT_MINUTES, |known| known.limit_minutes);
    Duration::from_secs(60 * (limit + CALLBACK_MINUTES))
}

fn of(product: &Product) -> Option<&'static Documented> {
    DOCUMENTED
        .iter()
        .find(|known| known.product == product.as_str())
}

/// The paths of products: those that are documented, and those of the configuration, which come first.
#[derive(Clone, Debug, Default)]
pub struct Paths(BTreeMap<Product, String>);

impl Paths {
    /// `configured` are segments as `reconcile.path` has them: `flux`, `kling/o1-video`, or `sora/` with a slash behind the id.
    pub fn new(configured: BTreeMap<Product, String>) -> Self {
        Self(configured)
    }

    /// The path of a task's status; `None` if no path of the product is known.
    pub fn status(&self, product: &Product, task_id: &TaskId) -> Option<String> {
        let path = self.path(product)?;
        let (path, slash) = path
            .strip_suffix('/')
            .map_or((path, ""), |path| (path, "/"));
        let id = match task_id.as_str() {
            // A segment of dots leads upwards, also if one of them is encoded; so this is the id of nothing.
            dots @ ("." | "..") => dots.replace('.', "%252E"),
            id => utf8_percent_encode(id, ENCODED).to_string(),
        };
        Some(format!("/v1/{path}/generations/{id}{slash}"))
    }

    /// The path of the list of recent tasks; `None` if the product has none.
    pub fn list(&self, product: &Product, limit: u64, offset: u64) -> Option<String> {
        of(product).filter(|known| known.has_list)?;
        let path = self.path(product)?.trim_end_matches('/');
        Some(format!(
            "/v1/{path}/generations?limit={limit}&offset={offset}"
        ))
    }

    fn path(&self, product: &Product) -> Option<&str> {
        let configured = self.0.get(product).map(String::as_str);
        configured.or_else(|| Some(of(product)?.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vendor::sample::PRODUCTS;

    const ID: &str = "ffd473d5-5bef-4e14-bf22-8d559be3c19f";

    fn product(name: &str) -> Product {
        Product::parse(name).unwrap()
    }

    fn status(paths: &Paths, name: &str, id: &str) -> Option<String> {
        paths.status(&product(name), &TaskId::parse(id).unwrap())
    }

    #[test]
    fn each_documented_product_has_its_paths_and_its_time() {
        let paths = Paths::default();
        let expected = [
            ("veo", "veo", "", true, 12),
            ("kling", "kling", "", true, 17),
            ("kling-o1-video", "kling/o1-video", "", false, 17),
            ("kling-o3-video", "kling/o3-video", "", false, 17),
            ("kling-o1-photo", "kling/o1-photo", "", false, 17),
            ("kling-o3-photo", "kling/o3-photo", "", false, 17),
            ("gemini", "gemini", "", true, 3),
            ("chatgpt-images", "chatgpt-images", "", true, 3),
            ("sora", "sora", "/", true, 17),
            ("seedance", "seedance", "", false, 17),
        ];
        assert_eq!(expected.map(|(name, ..)| name), PRODUCTS);
        for (name, path, slash, has_list, minutes) in expected {
            assert_eq!(
                status(&paths, name, ID).unwrap(),
                format!("/v1/{path}/generations/{ID}{slash}")
            );
            assert_eq!(
                paths.list(&product(name), 100, 200),
                has_list.then(|| format!("/v1/{path}/generations?limit=100&offset=200"))
            );
            assert_eq!(
                expect_within(&product(name)),
                Duration::from_secs(60 * minutes)
            );
        }
    }

    #[test]
    fn another_product_has_the_path_of_the_configuration_or_none() {
        let flux = product("flux");
        assert_eq!(status(&Paths::default(), "flux", ID), None);
        assert_eq!(Paths::default().list(&flux, 100, 0), None);
        assert_eq!(expect_within(&flux), Duration::from_secs(17 * 60));

        let configured = [("flux", "flux/pro/"), ("veo", "veo-3"), ("sora", "sora")];
        let configured = configured.map(|(name, path)| (product(name), path.to_owned()));
        let paths = Paths::new(configured.into());
        assert_eq!(
            status(&paths, "flux", "7").unwrap(),
            "/v1/flux/pro/generations/7/"
        );
        assert_eq!(paths.list(&flux, 100, 0), None, "nobody knows of a list");
        assert_eq!(
            status(&paths, "sora", "7").unwrap(),
            "/v1/sora/generations/7"
        );
        assert_eq!(
            paths.list(&product("veo"), 100, 0).unwrap(),
            "/v1/veo-3/generations?limit=100&offset=0"
        );
        assert_eq!(
            status(&paths, "kling", "7").unwrap(),
            "/v1/kling/generations/7"
        );
    }

    #[test]
    fn an_id_is_one_segment_whatever_it_has() {
        for (id, encoded) in [
            ("a-b_c.d~1", "a-b_c.d~1"),
            ("a/b", "a%2Fb"),
            ("../../balance", "..%2F..%2Fbalance"),
            ("a?x=1", "a%3Fx%3D1"),
            ("a#b%41", "a%23b%2541"),
            ("é", "%C3%A9"),
            ("a\\b;c", "a%5Cb%3Bc"),
            (".", "%252E"),
            ("..", "%252E%252E"),
            ("...", "..."),
        ] {
            let path = status(&Paths::default(), "veo", id).unwrap();
            assert_eq!(path, format!("/v1/veo/generations/{encoded}"));
            assert!(path.parse::<hyper::Uri>().is_ok());
        }
    }
}
