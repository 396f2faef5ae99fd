//! Tables for the terminal: columns are aligned by the width that is displayed, and fit the screen.
//! Pure, except for asking how wide the screen is.

use std::{borrow::Cow, io};

use unicode_width::UnicodeWidthStr;

use crate::printable::printable;

/// Widest column if the screen's width is unknown.
const COLUMN_WIDTH_MAX: usize = 64;
/// No column is made narrower than this, or than its header.
const COLUMN_WIDTH_MIN: usize = 8;
/// Spaces between two columns.
const GAP: usize = 2;
/// Marks a value that was cut.
const ELLIPSIS: &str = "…";

/// Columns of the terminal on standard output; `None` if it is not a terminal.
pub(super) fn screen_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(size.ws_col.into()).filter(|&width| width > 0)
}

/// The text, padded with spaces to a width on the screen.
pub(super) fn pad(text: &str, width: usize) -> String {
    format!("{text}{:1$}", "", width.saturating_sub(text.width()))
}

/// The text, cut to `width_max` with an ellipsis if necessary. `text` has to be printable, and
/// `width_max` is not 0.
pub(super) fn cut(text: &str, width_max: usize) -> Cow<'_, str> {
    if text.width() <= width_max {
        return text.into();
    }
    let fits = |end: &usize| text[..*end].width() < width_max;
    let end = text
        .char_indices()
        .map(|(end, _)| end)
        .take_while(fits)
        .last()
        .unwrap_or_default();
    format!("{}{ELLIPSIS}", &text[..end]).into()
}

/// A table with aligned columns that fits a screen; the last column is not padded. On a screen that
/// is too narrow, each row is a block with a line for each column instead. The first column
/// identifies the row and is never cut; the JSON output has the full values.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: &[[String; N]],
    screen_width: Option<usize>,
) -> String {
    let cells: Vec<[Cow<'_, str>; N]> = rows
        .iter()
        .map(|row| std::array::from_fn(|column| printable(&row[column])))
        .collect();

    let widest = |column: usize| {
        cells
            .iter()
            .map(|row| row[column].width())
            .max()
            .unwrap_or_default()
    };

    let needed = std::array::from_fn(|column| widest(column).max(header[column].width()));
    let widths = fitted(needed, header, screen_width);
    if let Some(screen) = screen_width
        && widths.iter().sum::<usize>() + GAP * (N - 1) > screen
    {
        return blocks(header, &cells, screen);
    }

    let mut text = String::new();
    for line in std::iter::once(header.map(Cow::Borrowed)).chain(cells) {
        let padded: Vec<_> = (0..N)
            .map(|column| pad(&cut(&line[column], widths[column]), widths[column]))
            .collect();
        text.push_str(padded.join(&" ".repeat(GAP)).trim_end());
        text.push('\n');
    }

    text
}

/// Each row as lines of a name and a value, with an empty line between two rows.
fn blocks<const N: usize>(
    header: [&str; N],
    rows: &[[Cow<'_, str>; N]],
    screen_width: usize,
) -> String {
    let names = header
        .iter()
        .map(|name| name.width())
        .max()
        .unwrap_or_default();

    let room = screen_width
        .saturating_sub(names + GAP)
        .max(COLUMN_WIDTH_MIN);
    let block = |row: &[Cow<'_, str>; N]| -> String {
        let shown = |column: usize| {
            if column == 0 {
                row[0].clone()
            } else {
                cut(&row[column], room)
            }
        };
        let line = |column| {
            format!("{}{}", pad(header[column], names + GAP), shown(column))
                .trim_end()
                .to_owned()
                + "\n"
        };
        (0..N).map(line).collect()
    };

    rows.iter().map(block).collect::<Vec<_>>().join("\n")
}

/// The widths of the columns: the widest one shrinks until all fit.
fn fitted<const N: usize>(
    mut widths: [usize; N],
    header: [&str; N],
    screen_width: Option<usize>,
) -> [usize; N] {
    let least = |column: usize| header[column].width().max(COLUMN_WIDTH_MIN);
    let room = screen_width
        .unwrap_or(usize::MAX)
        .saturating_sub(GAP * (N - 1));
    let widest_max = screen_width.unwrap_or(COLUMN_WIDTH_MAX);
    for width in &mut widths[1..] {
        *width = (*width).min(widest_max);
    }
    while widths.iter().sum::<usize>() > room {
        let wide = (1..N).filter(|&column| widths[column] > least(column));
        let Some(widest) = wide.max_by_key(|&column| widths[column]) else {
            break;
        };
        widths[widest] -= 1;
    }
    widths
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            ["a".into(), "1".into(), "x".into()],
            ["äöü".into(), "22".into(), String::new()],
        ];
        assert_eq!(
            table(["id", "n", "last"], &rows, None),
            "id   n   last\na    1   x\näöü  22\n"
        );
    }

    #[test]
    fn columns_are_aligned_by_displayed_width() {
        let rows = [
            ["日本".into(), "1".into()],
            ["e\u{301}".into(), "2".into()],
            ["\u{202e}".into(), "3".into()],
        ];
        assert_eq!(
            table(["id", "n"], &rows, None),
            "id        n\n日本      1\ne\u{301}         2\n\\u{202e}  3\n"
        );
    }

    #[test]
    fn a_long_value_is_cut_and_does_not_widen_other_rows() {
        let rows = |long: usize| {
            [
                ["1".into(), "x".repeat(long), "y".into()],
                ["2".into(), "b".into(), "c".into()],
            ]
        };
        let lines = |long, screen| table(["ID", "TARGET", "DETAIL"], &rows(long), screen);
        assert_eq!(
            lines(64, None).lines().nth(1),
            Some(&*format!("1   {}  y", "x".repeat(64)))
        );
        assert_eq!(
            lines(65, None).lines().nth(1),
            Some(&*format!("1   {}…  y", "x".repeat(63)))
        );
        // 2 for the id, 6 for the detail, and two gaps.
        assert_eq!(
            lines(28, Some(40)).lines().nth(1),
            Some(&*format!("1   {}  y", "x".repeat(28)))
        );
        assert_eq!(
            lines(29, Some(40)).lines().nth(1),
            Some(&*format!("1   {}…  y", "x".repeat(27)))
        );
        let cut = lines(15_000, None);
        assert!(
            cut.lines().all(|line| line.width() <= 2 + 64 + 6 + 4),
            "{cut}"
        );
    }

    #[test]
    fn columns_that_do_not_fit_become_lines_and_the_id_is_never_cut() {
        let id = "i".repeat(36);
        let rows = [
            [id.clone(), "x".repeat(90), "y".into()],
            ["2".into(), String::new(), "z".into()],
        ];
        let header = ["ID", "CLIENT", "A LONG FILTER"];
        // The id, two gaps, the least of a column, and a header.
        let narrow = 36 + 4 + 8 + 13;
        let text = table(header, &rows, Some(narrow));
        assert_eq!(text.lines().nth(1), Some(&*format!("{id}  xxxxxxx…  y")));
        let text = table(header, &rows, Some(narrow - 1));
        let x = "x".repeat(narrow - 1 - 15 - 1);
        let blocks = [
            format!("ID             {id}\nCLIENT         {x}…\nA LONG FILTER  y\n"),
            "ID             2\nCLIENT\nA LONG FILTER  z\n".to_owned(),
        ];
        assert_eq!(text, blocks.join("\n"));
    }

    #[test]
    fn a_wide_character_that_fits_in_half_is_left_out() {
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("日", 1), "…");
    }

    proptest! {
        #[test]
        fn a_table_fits_the_screen(
            cells in prop::collection::vec(prop::array::uniform3(any::<String>()), 1..4),
            screen in 40_usize..200,
        ) {
            let rows: Vec<_> = cells.into_iter().zip(1..).map(|([a, b, c], n)| [n.to_string(), a, b, c]).collect();
            for screen in [Some(screen), None] {
                let text = table(["ID", "CLIENT", "STATE", "FILTER"], &rows, screen);
                prop_assert_eq!(text.lines().count(), rows.len() + 1);
                for line in text.lines() {
                    prop_assert!(line.width() <= screen.unwrap_or(2 + 3 * 64 + 6), "{} in {:?}", line, screen);
                }
            }
        }

        #[test]
        fn a_table_fits_a_screen_that_is_too_narrow_for_its_columns(
            cells in prop::collection::vec(prop::array::uniform7(any::<String>()), 1..4),
            screen in 48_usize..130,
        ) {
            let header = ["ID", "CLIENT", "PEER", "STATE", "LAG", "DELIVERED", "OPENED", "FILTER"];
            let row = |[a, b, c, d, e, f, g]: [String; 7]| ["1".repeat(36), a, b, c, d, e, f, g];
            let rows: Vec<_> = cells.into_iter().map(row).collect();
            for line in table(header, &rows, Some(screen)).lines() {
                prop_assert!(line.width() <= screen, "{} in {}", line, screen);
            }
        }

        #[test]
        fn what_is_cut_fits(text in any::<String>(), width_max in 1_usize..80) {
            let text = printable(&text);
            let cut = cut(&text, width_max);
            prop_assert!(cut.width() <= width_max && (cut == text || text.width() > width_max), "{}", cut);
        }
    }
}
