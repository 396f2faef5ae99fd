//! Pictures of what was measured: one bar for each side, with the extremes as whiskers, over an axis that begins at zero.
//! Scalable, readable on light and on dark pages, and without a script. Drawn of the JSON, so that they can be drawn again. Pure.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::{report::number, statistics::Spread};

const WIDTH: usize = 760;
/// Where bars begin, and how long the longest is; behind it there is room for a number.
const BARS_X: usize = 190;
const BARS_WIDTH: f64 = 440.0;
const BAR_HEIGHT: usize = 16;
const ROW_HEIGHT: usize = 26;
const TITLE_HEIGHT: usize = 34;
const AXIS_HEIGHT: usize = 24;
const GAP_HEIGHT: usize = 18;
/// Marks on an axis at most; their distance is 1, 2 or 5 times a power of ten.
const MARKS_MAX: f64 = 5.0;

/// Colours of GitHub's two themes.
const STYLE: &str = "<style>\
text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600}.unit,.mark{fill:#59636e}.mark{font-size:11px}\
.first{fill:#0969da}.other{fill:#afb8c1}.whisker{stroke:#1f2328;stroke-width:1.5}.axis{stroke:#afb8c1}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.unit,.mark{fill:#9198a1}.first{fill:#4493f8}.other{fill:#656c76}\
.whisker{stroke:#f0f6fc}.axis{stroke:#656c76}}\
</style>";

/// A table, as it is in the JSON.
#[derive(Debug, Deserialize)]
pub struct Picture {
    title: String,
    unit: String,
    sides: Vec<Bar>,
}

#[derive(Debug, Deserialize)]
struct Bar {
    name: String,
    samples: Vec<Value>,
}

#[derive(Debug, Deserialize)]
struct Value {
    value: f64,
}

/// All tables of a goal, one below the other.
pub fn svg(pictures: &[Picture]) -> String {
    let (mut y, mut body) = (GAP_HEIGHT, String::new());
    for picture in pictures {
        y = draw(picture, y, &mut body) + GAP_HEIGHT;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" height=\"{y}\">\n{STYLE}\n{body}</svg>\n"
    )
}

/// Draws a table from `y` on; returns where it ends.
fn draw(picture: &Picture, mut y: usize, body: &mut String) -> usize {
    let spread = |bar: &Bar| Spread::of(bar.samples.iter().map(|sample| sample.value));
    let spreads: Vec<_> = picture
        .sides
        .iter()
        .filter_map(|bar| Some((&bar.name, spread(bar)?)))
        .collect();
    let longest = spreads
        .iter()
        .map(|(_, spread)| spread.max)
        .fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| BARS_X as f64 + value / longest * BARS_WIDTH;
    let _ = writeln!(
        body,
        "<text x=\"8\" y=\"{}\" class=\"title\">{} <tspan class=\"unit\">{}</tspan></text>",
        y + BAR_HEIGHT,
        escaped(&picture.title),
        escaped(&picture.unit)
    );
    y += TITLE_HEIGHT;
    for (place, (name, Spread { median, min, max })) in spreads.into_iter().enumerate() {
        let class = if place == 0 { "first" } else { "other" };
        let (text_y, middle_y, name) = (y + 13, y + BAR_HEIGHT / 2, escaped(name));
        let width = (x(median) - BARS_X as f64).max(1.0);
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{text_y}\" text-anchor=\"end\">{name}</text>",
            BARS_X - 10
        );
        let _ = writeln!(
            body,
            "<rect x=\"{BARS_X}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR_HEIGHT}\" rx=\"2\" class=\"{class}\"/>"
        );
        let _ = writeln!(
            body,
            "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle_y}\" y2=\"{middle_y}\" class=\"whisker\"/>",
            x(min),
            x(max)
        );
        let _ = writeln!(
            body,
            "<text x=\"{:.1}\" y=\"{text_y}\">{}</text>",
            x(max) + 8.0,
            number(median)
        );
        y += ROW_HEIGHT;
    }
    draw_axis(longest, &picture.unit, y, &x, body);
    y + AXIS_HEIGHT
}

/// Draws the axis below the bars, with its marks and its unit.
fn draw_axis(longest: f64, unit: &str, y: usize, x: &impl Fn(f64) -> f64, body: &mut String) {
    let (end, marks_y) = (x(longest), y + 16);
    let _ = writeln!(
        body,
        "<line x1=\"{BARS_X}\" x2=\"{end:.1}\" y1=\"{y}\" y2=\"{y}\" class=\"axis\"/>"
    );
    let step = step(longest);
    for mark in (0..)
        .map(|count| f64::from(count) * step)
        .take_while(|mark| *mark <= longest)
    {
        let (at, text) = (x(mark), number(mark));
        let _ = writeln!(
            body,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{y}\" y2=\"{}\" class=\"axis\"/>",
            y + 4
        );
        let _ = writeln!(
            body,
            "<text x=\"{at:.1}\" y=\"{marks_y}\" text-anchor=\"middle\" class=\"mark\">{text}</text>"
        );
    }
    let _ = writeln!(
        body,
        "<text x=\"{:.1}\" y=\"{marks_y}\" class=\"mark\">{}</text>",
        end + 30.0,
        escaped(unit)
    );
}

/// The distance of marks on an axis up to `longest`.
fn step(longest: f64) -> f64 {
    let power = 10_f64.powf((longest / MARKS_MAX).log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|times| times * power)
        .find(|step| longest / step <= MARKS_MAX)
        .unwrap_or(10.0 * power)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        harness::Cost,
        report::{Better, Sample, Table, Who},
    };

    #[test]
    fn a_picture_shows_every_side_over_an_axis_with_its_unit() {
        let mut table = Table::new("a & b", "x/s", Better::More);
        for (name, value) in [("ours", 2.0), ("theirs", 1.0)] {
            table.add(
                Who { name, settings: "" },
                Sample {
                    value,
                    cost: Cost::default(),
                },
            );
        }
        let picture = svg(&[serde_json::from_value(json!(table)).unwrap()]);
        assert!(
            picture.contains("a &amp; b")
                && picture.contains(">ours<")
                && picture.contains(">theirs<")
        );
        assert!(picture.contains("width=\"440.0\"") && picture.contains("width=\"220.0\""));
        for mark in [">0<", ">0.500<", ">1.00<", ">1.50<", ">2.00<", ">x/s<"] {
            assert!(picture.contains(mark), "{mark}");
        }
    }

    #[test]
    fn marks_are_few_and_round() {
        assert_eq!(
            [0.9, 1.0, 3.0, 7.0, 40.0, 126_000.0].map(step),
            [0.2, 0.2, 1.0, 2.0, 10.0, 50_000.0]
        );
    }
}
