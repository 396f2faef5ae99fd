//! The section of the reconciler, and tables by product.

use super::*;

#[test]
fn reconciling_needs_a_file_with_keys() {
    let [problem] = &errors_of(load(&flag("reconcile.enabled", "true")))[..] else {
        panic!("one problem")
    };
    assert!(
        problem.contains("reconcile.enabled") && problem.contains("`credentials_file`"),
        "{problem}"
    );
    let enabled = ("reconcile.enabled", "true");
    let config = load(&flags(&[("credentials_file", "/a"), enabled])).unwrap();
    assert!(config.reconcile.enabled);
    // A file that cannot be read is one problem, not two.
    let unreadable = "credentials_file = 1\n[reconcile]\nenabled = true";
    assert_eq!(errors_of(load_file(unreadable)).len(), 1);
}

#[test]
fn a_table_by_product_is_the_same_in_each_layer_and_in_each_form_of_toml() {
    let expected = load(&flag("reconcile.expect_within", "veo=12m,flux=90s")).unwrap();
    let of = |product: &str| expected.reconcile.expect_within.get(product).copied();
    assert_eq!(
        [of("veo"), of("flux"), of("sora")],
        [
            Some(Duration::from_secs(720)),
            Some(Duration::from_secs(90)),
            None
        ]
    );
    for text in [
        "[reconcile]\nexpect_within = { veo = \"12m\", flux = \"90s\" }",
        "[reconcile.expect_within]\nveo = \"12m\"\nflux = \"90s\"",
        "reconcile.expect_within.veo = \"12m\"\nreconcile.expect_within.flux = \"90s\"",
    ] {
        assert_eq!(load_file(text).unwrap(), expected, "{text}");
    }
    let name = "BLOBCAST_RECONCILE__EXPECT_WITHIN";
    let env = load(&variable(name, "veo=12m, flux=90s,")).unwrap();
    assert_eq!(env, expected);
    // A higher layer replaces the whole table.
    let both = load_with_file(
        "[reconcile.expect_within]\nsora = \"1m\"",
        variable(name, "veo=12m,flux=90s"),
    );
    assert_eq!(both.unwrap(), expected);
}

#[test]
fn a_table_by_product_names_the_product_of_a_wrong_value() {
    for (key, wrong, why) in [
        (
            "reconcile.expect_within",
            "veo=12",
            "veo: \"12\" is not a duration",
        ),
        (
            "reconcile.expect_within",
            "veo",
            "\"veo\" is not PRODUCT=VALUE",
        ),
        (
            "reconcile.expect_within",
            "veo=1m,veo=2m",
            "veo is named twice",
        ),
        ("reconcile.expect_within", "Veo=1m", "\"Veo\" is no product"),
        (
            "reconcile.expect_within",
            "veo=999ms",
            "veo: 999ms is out of range, which is 1s to 7d",
        ),
        ("reconcile.path", "flux=/flux", "it has an empty segment"),
        ("reconcile.path", "flux=a//b", "it has an empty segment"),
        ("reconcile.path", "flux=", "it has no segment"),
        ("reconcile.path", "flux=/", "it has no segment"),
        ("reconcile.path", "flux=../admin", "it leads elsewhere"),
        ("reconcile.path", "flux=a/./b", "it leads elsewhere"),
        ("reconcile.path", "flux=a?b", "it has other characters"),
        ("reconcile.path", "flux=a%2Fb", "it has other characters"),
    ] {
        let errors = errors_of(load(&flag(key, wrong)));
        assert!(errors.len() == 1 && errors[0].contains(why), "{errors:?}");
        let line = match wrong.split_once('=').filter(|_| !wrong.contains(',')) {
            Some((product, value)) => format!("[{key}]\n{product} = {value:?}"),
            None => continue,
        };
        let errors = errors_of(load_file(&line));
        assert!(
            errors.len() == 1 && errors[0].contains(why) && errors[0].contains("blobcast.toml:1"),
            "{errors:?}"
        );
    }
    let errors = errors_of(load_file("[reconcile]\nexpect_within = 5"));
    assert!(
        errors.len() == 1 && errors[0].contains("write it like { veo = "),
        "{errors:?}"
    );
}

#[test]
fn one_product_of_a_table_is_no_key_of_its_own() {
    let errors = errors_of(load(&variable("BLOBCAST_RECONCILE__PATH__FLUX", "flux")));
    let expected =
        "`reconcile.path.flux`: is no key of its own; set `BLOBCAST_RECONCILE__PATH` as a whole";
    assert!(
        errors.len() == 1 && errors[0].ends_with(expected),
        "{errors:?}"
    );
}

#[test]
fn the_vendors_base_url_is_http_and_may_have_a_path() {
    let url = |raw| load(&flag("reconcile.base_url", raw)).map(|config| config.reconcile.base_url);
    assert_eq!(
        default_config().reconcile.base_url,
        "https://platform.runblob.io"
    );
    assert_eq!(url("https://a:8443/x/").unwrap(), "https://a:8443/x");
    for (wrong, why) in [
        ("", "it is empty"),
        ("platform.runblob.io", "must begin with http:// or https://"),
        ("https://a:65536", "has an invalid port"),
        ("https://a/?key=hunter2", "must have no query"),
        (
            "https://u:hunter2@a",
            "must not carry a user name or password",
        ),
    ] {
        let errors = errors_of(load(&flag("reconcile.base_url", wrong)));
        assert!(
            errors.len() == 1 && errors[0].contains(why) && !errors[0].contains("hunter2"),
            "{errors:?}"
        );
    }
}
