//! Rule 3: outputs.

use super::*;

#[test]
fn outputs_come_in_the_documented_order_whatever_the_order_in_the_body() {
    let body = r#"
        "result": ["http://q", "http://r"], "urls": "http://p", "url": "http://o",
        "output": {
            "url": "http://n", "last_frame_url": "http://m", "videos": "http://l", "images": ["http://k"],
            "image_urls": ["http://j"], "video_urls": ["http://i"]
        },
        "videos": ["http://h"], "images": [{"url": "http://g"}], "result_image_urls": ["http://f"], "image_urls": {"url": "http://e"},
        "image_url": "http://d", "result_image_url": "http://c", "video_urls": ["http://b"], "video_url": "http://a""#;
    let letters: Vec<_> = urls(body)
        .iter()
        .map(|url| url.trim_start_matches("http://").to_owned())
        .collect();
    assert_eq!(letters.concat(), "abcdefghijklmnopqr");
}

#[test]
fn an_output_may_be_a_text_an_object_or_an_array_of_either_wherever_it_stands() {
    let keys = [
        ["video_url", "video_urls", "result_image_url", "image_url"],
        ["image_urls", "result_image_urls", "images", "videos"],
        ["output", "url", "urls", "result"],
    ];
    for key in keys.as_flattened() {
        for value in [
            r#""https://a/b""#,
            r#"{"url": "https://a/b", "width": 5}"#,
            r#"["https://a/b", null, 5, ["https://a/c"]]"#,
            r#"[{"url": "https://a/b"}, {"url": null}, {"uri": "https://a/c"}]"#,
        ] {
            assert_eq!(
                urls(&format!(r#""{key}": {value}"#)),
                ["https://a/b"],
                "{key}: {value}"
            );
            assert_eq!(
                urls(&format!(r#""{key}": [{value}]"#)).len(),
                usize::from(!value.starts_with('[')),
                "{key}"
            );
        }
    }
}

#[test]
fn only_an_absolute_http_or_https_url_is_an_output() {
    for url in [
        "https://a/b?c=d#e",
        "HTTP://a",
        "https://a:8080/ü",
        "http://[::1]/",
        "https://u:p@a",
    ] {
        assert_eq!(
            urls(&format!(r#""video_url": "{url}", "result": ["{url}"]"#)),
            [url]
        );
    }
    for other in [
        "",
        " ",
        "v",
        "/videos/1.mp4",
        "//a/b",
        "a/b.mp4",
        "ftp://a/b",
        "data:image/png;base64,AAAA",
        "s3://a/b",
        "https:a",
        "https://",
        "https:///b",
        "http://?x",
        "https://a/b could not be written",
        "https://a/b\\n",
        "done",
    ] {
        assert_eq!(
            urls(&format!(r#""video_url": "{other}", "result": ["{other}"]"#)),
            [""; 0],
            "{other}"
        );
    }
}

#[test]
fn the_kind_of_an_output_comes_from_its_key() {
    let body = r#"
        "video_url": "http://1.png", "video_urls": "http://2", "result_image_url": "http://3/a.mp4", "image_url": "http://4",
        "image_urls": "http://5", "result_image_urls": ["http://6"], "images": "http://7", "videos": "http://8",
        "output": {"video_urls": ["http://9"], "image_urls": ["http://10"], "images": "http://11", "videos": "http://12",
                   "last_frame_url": "http://13", "url": "http://14/a.mp4"}"#;
    use OutputKind::{Image, Video};
    let kinds: Vec<_> = with(body)
        .outputs
        .into_iter()
        .map(|output| output.kind)
        .collect();
    let expected = [
        [Video, Video, Image, Image, Image, Image, Image],
        [Video, Video, Image, Image, Video, Image, Video],
    ];
    assert_eq!(kinds, expected.concat());
}

#[test]
fn the_kind_of_a_neutral_output_comes_from_its_extension() {
    let kinds = [
        ("https://a/b.mp4", OutputKind::Video),
        ("https://a/b.WEBM?x=1.png", OutputKind::Video),
        ("https://a/b.mov#t=1", OutputKind::Video),
        ("https://a/b.png", OutputKind::Image),
        ("https://a/b.JPEG?sig=a/b.mp4", OutputKind::Image),
        ("https://a.mp4/b", OutputKind::Other),
        ("https://a/b.zip", OutputKind::Other),
        ("https://a/b", OutputKind::Other),
    ];
    for (url, kind) in kinds {
        for value in [
            format!(r#""url": "{url}""#),
            format!(r#""result": "{url}""#),
            format!(r#""result": ["{url}"]"#),
        ] {
            assert_eq!(with(&value).outputs, [output(kind, url)]);
        }
    }
}

#[test]
fn empty_null_and_repeated_outputs_are_skipped() {
    assert_eq!(
        urls(r#""video_url": "", "url": null, "image_url": {"href": "http://x"}, "result": 5"#),
        [""; 0]
    );
    let within = r#""output": {"video_urls": [null, "", 5, {}, "http://a", "http://a", ["http://b"], "http://c"]}"#;
    assert_eq!(urls(within), ["http://a", "http://c"]);
    assert_eq!(
        urls(r#""video_url": "http://a", "url": "http://a", "result": ["http://a", "http://b"]"#),
        ["http://a", "http://b"]
    );
}

#[test]
fn an_output_found_twice_keeps_the_kind_of_the_first() {
    assert_eq!(
        with(r#""url": "http://a", "image_url": "http://a""#).outputs,
        [output(OutputKind::Image, "http://a")]
    );
}

#[test]
fn completed_without_an_output_and_failed_with_one_are_legal() {
    assert_eq!(with(r#""video_url": null"#).outputs, []);
    assert_eq!(
        report(r#"{"id": "t", "status": "failed", "video_url": "https://a/v"}"#)
            .outputs
            .len(),
        1
    );
}
