//! Pictures of what was measured: one bar for each side, with the extremes as whiskers. Scalable, readable on light and on dark
//! pages, and without a script. Pure.

use std::fmt::Write as _;

use crate::{
    report::{Table, number},
    statistics::Spread,
};

const WIDTH: usize = 760;
/// Where bars begin, and how long the longest is; behind it there is room for a number.
const BARS_X: usize = 190;
const BARS_WIDTH: f64 = 440.0;
const BAR_HEIGHT: usize = 16;
const ROW_HEIGHT: usize = 26;
const TITLE_HEIGHT: usize = 34;
const GAP_HEIGHT: usize = 12;

/// Colours of GitHub's two themes.
const STYLE: &str = "<style>\
text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600}.unit{fill:#59636e}\
.first{fill:#0969da}.other{fill:#afb8c1}.whisker{stroke:#1f2328;stroke-width:1.5}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.unit{fill:#9198a1}.first{fill:#4493f8}.other{fill:#656c76}.whisker{stroke:#f0f6fc}}\
</style>";

/// All tables of a goal, one below the other.
pub fn svg(tables: &[Table]) -> String {
    let (mut y, mut body) = (GAP_HEIGHT, String::new());
    for table in tables {
        y = draw(table, y, &mut body) + GAP_HEIGHT;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" height=\"{y}\">\n{STYLE}\n{body}</svg>\n"
    )
}

/// Draws a table from `y` on; returns where it ends.
fn draw(table: &Table, mut y: usize, body: &mut String) -> usize {
    let spreads: Vec<_> = table.sides.iter().filter_map(|side| Some((side.who.name, side.spread()?))).collect();
    let longest = spreads.iter().map(|(_, spread)| spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let _ = writeln!(
        body,
        "<text x=\"8\" y=\"{}\" class=\"title\">{} <tspan class=\"unit\">{}</tspan></text>",
        y + BAR_HEIGHT,
        escaped(&table.title),
        escaped(table.unit)
    );
    y += TITLE_HEIGHT;
    for (place, (name, Spread { median, min, max })) in spreads.into_iter().enumerate() {
        let class = if place == 0 { "first" } else { "other" };
        let [median_x, min_x, max_x] = [median, min, max].map(|value| BARS_X as f64 + value / longest * BARS_WIDTH);
        let (text_y, middle_y, name) = (y + 13, y + BAR_HEIGHT / 2, escaped(name));
        let width = (median_x - BARS_X as f64).max(1.0);
        let _ = writeln!(body, "<text x=\"{}\" y=\"{text_y}\" text-anchor=\"end\">{name}</text>", BARS_X - 10);
        let _ = writeln!(
            body,
            "<rect x=\"{BARS_X}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR_HEIGHT}\" rx=\"2\" class=\"{class}\"/>"
        );
        let _ = writeln!(
            body,
            "<line x1=\"{min_x:.1}\" x2=\"{max_x:.1}\" y1=\"{middle_y}\" y2=\"{middle_y}\" class=\"whisker\"/>"
        );
        let _ = writeln!(body, "<text x=\"{:.1}\" y=\"{text_y}\">{}</text>", max_x + 8.0, number(median));
        y += ROW_HEIGHT;
    }
    y
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        harness::Cost,
        report::{Better, Sample, Who},
    };

    #[test]
    fn a_picture_shows_every_side() {
        let mut table = Table::new("a & b", "x/s", Better::More);
        for (name, value) in [("ours", 2.0), ("theirs", 1.0)] {
            table.add(Who { name, settings: "" }, Sample { value, cost: Cost::default() });
        }
        let picture = svg(&[table]);
        assert!(picture.contains("a &amp; b") && picture.contains(">ours<") && picture.contains(">theirs<"));
        assert!(picture.contains("width=\"440.0\"") && picture.contains("width=\"220.0\""));
    }
}
