//! Every body that the vendor documents, with the complete report that it is read as.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde_json::json;

use super::*;

const EXAMPLE: &str = "ffd473d5-5bef-4e14-bf22-8d559be3c19f";
const KLING: &str = "550e8400-e29b-41d4-a716-446655440000";
const LEGACY: &str = "a1b2c3d4-e5f6-7890-abcd-ef1234567890";

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/vendor")
}

fn video(url: &str) -> Vec<Output> {
    vec![output(OutputKind::Video, url)]
}

fn image(url: &str) -> Vec<Output> {
    vec![output(OutputKind::Image, url)]
}

fn veo(report: Report) -> Report {
    Report {
        prompt: "A cat playing with a ball in a sunny room".into(),
        seed: Some(319_790_131),
        created_at: Some("2025-12-06T21:43:03.374Z".parse().unwrap()),
        completed_at: Some("2025-12-06T21:44:06.143Z".parse().unwrap()),
        ..report
    }
}

fn veo_failed(code: &str) -> Report {
    let error = Some(TaskError {
        code: code.into(),
        message: code.into(),
        details: Some(json!({})),
    });
    veo(Report {
        error,
        ..failed(EXAMPLE, "veo", code, code)
    })
}

fn legacy_failed(code: &str) -> Report {
    Report {
        status_text: String::new(),
        ..failed(LEGACY, "veo", code, code)
    }
}

/// `product` is not sora: a completed sora body has no key that only sora has.
fn sora(report: Report, completed_at: &str) -> Report {
    Report {
        prompt: "A beautiful sunset over the ocean".into(),
        created_at: Some("2025-11-24T10:00:00Z".parse().unwrap()),
        completed_at: Some(completed_at.parse().unwrap()),
        ..report
    }
}

fn veo_and_sora() -> Vec<(&'static str, Report)> {
    let photoreal = "Image contains photorealistic people. Please try with a different image.";
    let veo_video = video("https://cdn.runblob.io/videos/your-video.mp4");
    let legacy_video = video("https://cdn.runblob.com/videos/your-video.mp4");
    let sora_video = video("https://cdn.runblob.io/videos/2025/11/550e8400.mp4");
    let legacy = Report {
        status_text: String::new(),
        ..completed(LEGACY, "veo")
    };
    vec![
        (
            "veo-completed",
            veo(Report {
                outputs: veo_video,
                ..completed(EXAMPLE, "veo")
            }),
        ),
        ("veo-failed", veo_failed("UNSAFE_CONTENT")),
        ("veo-timeout", veo_failed("TIMEOUT")),
        (
            "veo-legacy-completed",
            Report {
                outputs: legacy_video,
                ..legacy
            },
        ),
        ("veo-legacy-failed", legacy_failed("UNSAFE_CONTENT")),
        ("veo-legacy-timeout", legacy_failed("TIMEOUT")),
        (
            "sora-completed",
            sora(
                Report {
                    outputs: sora_video,
                    ..completed(KLING, "unknown")
                },
                "2025-11-24T10:05:30Z",
            ),
        ),
        (
            "sora-failed",
            sora(
                failed(KLING, "sora", "UNSPECIFIED", photoreal),
                "2025-11-24T10:02:00Z",
            ),
        ),
    ]
}

fn kling() -> Vec<(&'static str, Report)> {
    let violation = "CONTENT_POLICY_VIOLATION";
    vec![
        (
            "kling-completed",
            Report {
                outputs: video("https://cdn.runblob.io/videos/550e8400.mp4"),
                completed_at: Some("2025-11-22T10:32:15Z".parse().unwrap()),
                ..completed(KLING, "unknown")
            },
        ),
        (
            "kling-o1-photo-completed",
            Report {
                outputs: image("https://cdn.example.com/photos/photo-550e8400.png"),
                model: "kling-o1-photo".into(),
                ..completed("photo-550e8400-e29b-41d4-a716", "kling-o1-photo")
            },
        ),
        (
            "kling-o1-video-completed",
            Report {
                outputs: video("https://cdn.example.com/videos/abc123.mp4"),
                model: "kling_o1_video".into(),
                ..completed(KLING, "kling-o1-video")
            },
        ),
        (
            "kling-o3-video-completed",
            Report {
                outputs: video("https://cdn.example.com/videos/550e8400.mp4"),
                model: "kling-o3-video-10s-pro".into(),
                ..completed(KLING, "kling-o3-video")
            },
        ),
        (
            "kling-o3-video-failed",
            Report {
                model: "kling-o3-video-10s-pro".into(),
                ..failed(KLING, "kling-o3-video", violation, violation)
            },
        ),
    ]
}

fn images() -> Vec<(&'static str, Report)> {
    let chatgpt_id = "dc62d83d-1953-4bca-8554-222679a7a4a9";
    vec![
        (
            "chatgpt-images-completed",
            Report {
                outputs: image("https://cdn.example.com/images/dc62d83d.png"),
                prompt: "cat and dog".into(),
                ..completed(chatgpt_id, "chatgpt-images")
            },
        ),
        (
            "nanobanana-completed",
            Report {
                outputs: image(
                    "https://storage.runblob.io/nanobanana/outputs/2025/12/ffd473d5.png",
                ),
                ..completed(EXAMPLE, "gemini")
            },
        ),
        (
            "nanobanana-failed",
            failed(EXAMPLE, "gemini", "MODERATION_FAILED", "MODERATION_FAILED"),
        ),
    ]
}

fn expected() -> Vec<(&'static str, Report)> {
    [veo_and_sora(), kling(), images()].concat()
}

#[test]
fn every_documented_body_is_read_in_full() {
    for (name, report) in expected() {
        let body = fs::read(directory().join(name).with_extension("json")).unwrap();
        assert_eq!(read(&body), Ok(report), "{name}");
    }
}

#[test]
fn every_documented_body_has_its_expectation() {
    let name =
        |file: fs::DirEntry| Some(file.file_name().to_str()?.strip_suffix(".json")?.to_owned());
    let files: BTreeSet<_> = fs::read_dir(directory())
        .unwrap()
        .filter_map(|file| name(file.unwrap()))
        .collect();
    let names: BTreeSet<_> = expected()
        .into_iter()
        .map(|(name, _)| name.to_owned())
        .collect();
    assert_eq!(files, names);
}
