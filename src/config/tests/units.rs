//! Values as texts: URLs, ratios, log filters, sizes and durations.

use super::*;

#[test]
fn a_public_url_is_http_without_query_and_loses_its_last_slash() {
    let url = |raw| load(&flag("public_url", raw)).map(|config| config.public_url);
    assert_eq!(url("").unwrap(), None);
    assert_eq!(
        url("https://hooks.example.com/").unwrap().as_deref(),
        Some("https://hooks.example.com")
    );
    assert_eq!(
        url("http://10.0.0.1:8080/in//").unwrap().as_deref(),
        Some("http://10.0.0.1:8080/in")
    );
    for wrong in [
        "example.com",
        "ftp://example.com",
        "https://",
        "https:///x",
        "https://:80",
        "https://a/?x=1",
        "https://a/#x",
        "https://a b",
        "https://user:secret@a",
        "https://a\n",
    ] {
        let errors = url(wrong).unwrap_err();
        assert_eq!(errors.problems.len(), 1, "{wrong}");
        assert_eq!(errors.to_string().lines().count(), 1, "{wrong}");
    }
}

#[test]
fn an_otlp_endpoint_is_http_without_a_path() {
    let endpoint =
        |raw| load(&flag("traces.otlp_endpoint", raw)).map(|config| config.traces.otlp_endpoint);
    assert_eq!(endpoint("").unwrap(), None);
    assert_eq!(
        endpoint("http://127.0.0.1:4317/").unwrap().as_deref(),
        Some("http://127.0.0.1:4317")
    );
    for good in ["https://collector", "http://[::1]:65535", "http://[::1]"] {
        assert_eq!(endpoint(good).unwrap().as_deref(), Some(good));
    }
    for (wrong, why) in [
        ("localhost:4317", "must begin with http:// or https://"),
        (
            "http://localhost:4318/v1/traces",
            "must have no path: traces are sent by gRPC",
        ),
        ("http://localhost:65536", "has an invalid port"),
        ("http://localhost:", "has an invalid port"),
        ("http://local[host", "has an invalid host"),
        (
            "http://user:secret@localhost",
            "must not carry a user name or password",
        ),
    ] {
        let errors = errors_of(load(&flag("traces.otlp_endpoint", wrong)));
        assert!(
            errors.len() == 1 && errors[0].contains("--traces-otlp-endpoint"),
            "{errors:?}"
        );
        assert!(
            errors[0].contains("is not an OTLP endpoint: it ") && errors[0].contains(why),
            "{errors:?}"
        );
    }
}

#[test]
fn a_secret_in_a_url_is_not_repeated() {
    for key in ["public_url", "traces.otlp_endpoint"] {
        for (raw, told) in [
            ("https://user:hunter2@a/b", "\"https://…@a/b\""),
            ("https://user:hunter2/@hunter2@a", "\"https://…@a\""),
            ("user:hunter2@a", "\"…@a\""),
            ("ftp://hunter2@a?hunter2", "\"ftp://…@a?…\""),
            ("https://a/?token=hunter2", "\"https://a/?…\""),
            ("https://a/#hunter2", "\"https://a/#…\""),
        ] {
            let line = line_of(key, raw);
            for errors in [
                errors_of(load(&flag(key, raw))),
                errors_of(load_file(&line)),
            ] {
                assert!(errors.len() == 1 && errors[0].contains(told), "{errors:?}");
                assert!(!errors[0].contains("hunter2"), "{errors:?}");
            }
        }
    }
}

#[test]
fn a_ratio_is_from_0_to_1() {
    for (raw, number) in [
        ("0", 0.0),
        ("1", 1.0),
        ("1.0", 1.0),
        ("0.25", 0.25),
        ("1e-3", 0.001),
    ] {
        let of_flag = load(&flag("traces.sampling_ratio", raw)).unwrap();
        let of_file = load_file(&line_of("traces.sampling_ratio", raw)).unwrap();
        assert_eq!(
            [of_flag, of_file].map(|config| config.traces.sampling_ratio.get()),
            [number; 2]
        );
    }
    for wrong in ["-0.1", "-1", "1.0000001", "2", "NaN", "inf", "", "half"] {
        let errors = errors_of(load(&flag("traces.sampling_ratio", wrong)));
        assert!(
            errors.len() == 1 && errors[0].contains("it is a number from 0 to 1"),
            "{errors:?}"
        );
    }
}

#[test]
fn a_log_filter_beyond_ascii_is_refused_rather_than_a_panic() {
    let errors = errors_of(load(&flag("logging.level", "ab\u{b84ba}=k.p")));
    assert!(
        errors[0].contains("it has characters other than ASCII"),
        "{errors:?}"
    );
}

#[test]
fn sizes_are_whole_numbers_with_binary_units() {
    for (text, bytes) in [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("1KiB", 1024),
        (" 2 MiB ", 2 << 20),
        ("3GiB", 3 << 30),
    ] {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    assert_eq!(parse_size("18446744073709551615"), Ok(u64::MAX));
    for wrong in [
        "",
        "MiB",
        "-1",
        "1.5MiB",
        "1MB",
        "1mib",
        "1M",
        "1 KiB B",
        "18446744073709551616",
        "16777216TiB",
    ] {
        assert!(parse_size(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_duration_needs_its_unit() {
    assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5400)));
    assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
    for wrong in ["", "5", "5 fortnights", "-1s", "s"] {
        assert!(parse_duration(wrong).is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn a_size_reads_back_as_it_is_printed(bytes: u64, unit in 0..5_u32) {
        let bytes = (bytes >> (10 * unit)) << (10 * unit);
        prop_assert_eq!(parse_size(&size_text(bytes)), Ok(bytes));
    }

    #[test]
    fn a_size_is_its_number_times_its_unit(number in 0..1_u64 << 24, unit in 0..5_u32, space in " ?") {
        let name = ["B", "KiB", "MiB", "GiB", "TiB"][unit as usize];
        let bytes = u128::from(number) << (10 * unit);
        prop_assert_eq!(parse_size(&format!("{number}{space}{name}")).ok(), u64::try_from(bytes).ok());
    }

    #[test]
    fn a_duration_reads_back_as_it_is_printed(seconds in 0..400_000_000_u64, nanoseconds in 0..1_000_000_000_u32) {
        for duration in [Duration::from_secs(seconds), Duration::new(seconds, nanoseconds)] {
            prop_assert_eq!(parse_duration(&duration_text(duration.as_nanos())), Ok(duration));
        }
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in ".{0,40}") {
        drop((parse_size(&text), parse_duration(&text), parse_listen(&text)));
        for key in ["public_url", "hub.ring_bytes_max", "logging.level", "grpc.products_max", &text] {
            drop(load(&flag(key, &text)));
        }
    }

    #[test]
    fn no_file_makes_the_loader_panic_and_every_error_is_one_line(text in "([a-z.\"\\[\\]={}# \n]|[ -~é]){0,120}") {
        if let Err(errors) = load_file(&text) {
            prop_assert_eq!(errors.to_string().lines().count(), errors.problems.len());
        }
    }
}
