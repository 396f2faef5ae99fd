//! Makes untrusted text safe to print on a terminal and in a log. Pure.
//!
//! A terminal obeys control characters, and text can mislead its reader: a bidirectional override
//! reverses the rest of a line, a zero-width character makes two names look alike, a stack of
//! combining marks covers the lines above. Characters that are invisible or misleading are written
//! as escapes. Letters of every script stay as they are.

use std::borrow::Cow;

/// Most combining marks on one character: Tibetan and pointed Hebrew use six at most.
const MARKS_MAX: usize = 8;
/// Most characters of an untrusted text in a line of the log: enough for client names (128) and
/// most paths.
const BEGINNING_CHARS_MAX: usize = 200;

/// The text with escapes such as `\u{202e}`, on one line: `\n` and `\t` are escaped, too.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    rewritten(text, |c, out| match c {
        '\n' | '\r' | '\t' => out.extend(c.escape_default()),
        _ => out.extend(c.escape_unicode()),
    })
}

/// Like [`printable`], cut to the length that a line of the log can take, with an ellipsis if it
/// was cut. A client decides how long its texts are.
pub(crate) fn printable_beginning(text: &str) -> String {
    let end = text
        .char_indices()
        .nth(BEGINNING_CHARS_MAX)
        .map_or(text.len(), |(end, _)| end);
    let mut shown = printable(&text[..end]).into_owned();
    let is_cut = match shown.char_indices().nth(BEGINNING_CHARS_MAX) {
        Some((end, _)) => {
            shown.truncate(end); // escapes are longer than the characters they replace
            true
        }
        None => end < text.len(),
    };
    if is_cut {
        shown.push('…');
    }
    shown
}

/// The same JSON with escapes such as `\u202e`. In valid JSON the escaped characters can only be
/// inside strings.
pub(crate) fn printable_json(json: &str) -> Cow<'_, str> {
    rewritten(json, |c, out| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    })
}

fn rewritten(text: &str, escape: impl Fn(char, &mut String)) -> Cow<'_, str> {
    let mut scan = Scan::default();
    if text.bytes().all(is_plain_byte) || !text.chars().any(|c| scan.must_escape(c)) {
        return text.into();
    }

    let (mut scan, mut out) = (Scan::default(), String::with_capacity(text.len()));
    for c in text.chars() {
        if scan.must_escape(c) {
            escape(c, &mut out);
        } else {
            out.push(c);
        }
    }
    out.into()
}

fn is_plain_byte(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}

/// State while a text is read: the character that combining marks apply to.
#[derive(Default)]
struct Scan {
    /// `None` at the beginning and after an escape.
    base: Option<char>,
    /// Marks on `base` so far.
    marks: usize,
}

impl Scan {
    fn must_escape(&mut self, c: char) -> bool {
        let is_shown = match Kind::of(c) {
            Kind::Visible => {
                (self.base, self.marks) = (Some(c), 0);
                return false;
            }
            Kind::Mark => self.base.is_some() && self.marks < MARKS_MAX,
            // It makes a heart red or black. After a letter it is invisible, and a row of them can
            // hide a message.
            Kind::Presentation => {
                self.marks == 0 && self.base.is_some_and(|base| !base.is_alphanumeric())
            }
            Kind::Hidden => false,
        };
        self.marks += 1;
        if !is_shown {
            self.base = None;
        }
        !is_shown
    }
}

enum Kind {
    Visible,
    /// Combines with the character before it.
    Mark,
    /// A variation selector: shows the symbol before it as text or as emoji.
    Presentation,
    /// A control, or invisible.
    Hidden,
}

impl Kind {
    fn of(c: char) -> Self {
        match c {
            ' '..='~' => Self::Visible,
            '\u{fe0e}' | '\u{fe0f}' => Self::Presentation,
            // Letters and marks with Unicode's Default_Ignorable_Code_Point, and the blank pattern
            // of Braille.
            '\u{34f}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{2800}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0d}'
            | '\u{ffa0}'
            | '\u{e0000}'..='\u{e0fff}' => Self::Hidden,
            // Line separators, which the next arm would accept as whitespace.
            '\u{2028}' | '\u{2029}' => Self::Hidden,
            _ if c.is_whitespace() && !c.is_control() => Self::Visible,
            // The standard library escapes control, format, private-use and unassigned characters,
            // and a mark that stands alone.
            _ if c.escape_debug().len() == 1 => Self::Visible,
            _ if String::from_iter(['a', c]).escape_debug().count() == 2 => Self::Mark,
            _ => Self::Hidden,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn controls_and_invisible_characters_are_shown_as_escapes() {
        for (text, shown) in [
            (
                "a\u{202e}b\u{2066}c\u{200f}",
                "a\\u{202e}b\\u{2066}c\\u{200f}",
            ),
            (
                "\u{200b}\u{200d}\u{2060}\u{feff}\u{ad}",
                "\\u{200b}\\u{200d}\\u{2060}\\u{feff}\\u{ad}",
            ),
            (
                "a\u{2028}b\u{2029}c\u{85}d",
                "a\\u{2028}b\\u{2029}c\\u{85}d",
            ),
            (
                "\u{1b}[31m\u{9b}31m\u{7f}\0\r\n\t",
                "\\u{1b}[31m\\u{9b}31m\\u{7f}\\u{0}\\r\\n\\t",
            ),
            (
                "\u{1f3f4}\u{e0067}\u{e007f}",
                "\u{1f3f4}\\u{e0067}\\u{e007f}",
            ),
            (
                "a\u{fe0f} \u{2764}\u{fe0f}\u{fe0f}\u{e0100}",
                "a\\u{fe0f} \u{2764}\u{fe0f}\\u{fe0f}\\u{e0100}",
            ),
            (
                "\u{3164}\u{115f}\u{2800}\u{34f}",
                "\\u{3164}\\u{115f}\\u{2800}\\u{34f}",
            ),
            (
                "\u{301}a\u{301}\u{200b}\u{301}",
                "\\u{301}a\u{301}\\u{200b}\\u{301}",
            ),
            ("\u{e000}\u{10ffff}", "\\u{e000}\\u{10ffff}"),
        ] {
            assert_eq!(printable(text), shown, "{text:?}");
        }
        let stacked = format!("a{}", "\u{301}".repeat(MARKS_MAX));
        assert_eq!(printable(&stacked), stacked);
        assert_eq!(
            printable(&format!("{stacked}\u{301}")),
            format!("{stacked}\\u{{301}}")
        );
    }

    #[test]
    fn a_long_text_is_cut_and_ends_with_an_ellipsis() {
        for (text, is_cut) in [
            ("é".repeat(BEGINNING_CHARS_MAX), false),
            ("é".repeat(BEGINNING_CHARS_MAX + 1), true),
            ("x".repeat(1024 * 1024), true),
            ("\u{202e}".repeat(BEGINNING_CHARS_MAX / 8 + 1), true),
        ] {
            let shown = printable_beginning(&text);
            assert_eq!(shown.ends_with('…'), is_cut, "{shown}");
            assert_eq!(
                shown.chars().count(),
                BEGINNING_CHARS_MAX + usize::from(is_cut)
            );
        }
        assert_eq!(printable_beginning("a\nb"), "a\\nb");
    }

    #[test]
    fn letters_of_every_script_stay_as_they_are() {
        for text in [
            "plain \\ \"text\" ~",
            "Grüße, Ελληνικά, Кириллица",
            "שָׁלוֹם עֲלֵיכֶם",
            "السَّلَامُ عَلَيْكُمْ",
            "हिन्दी ไทยน้ำ བརྒྱུད",
            "日本語　空白 한국어",
            "a\u{301} \u{1f600} \u{1f44d}\u{1f3fd} \u{2764}\u{fe0f} \u{1f1e9}\u{1f1ea}",
        ] {
            assert!(
                matches!(printable(text), Cow::Borrowed(_)),
                "{}",
                printable(text)
            );
        }
    }

    /// Mostly dangerous characters, with others between them.
    fn hostile() -> impl Strategy<Value = String> {
        let odd = "[\u{0}-\u{1f}\u{7f}-\u{9f}\u{ad}\u{300}-\u{36f}\u{600}-\u{605}\u{61c}\u{180b}-\u{180f}\u{200b}-\u{200f}]|\
                   [\u{2028}-\u{202e}\u{2060}-\u{206f}\u{fe00}-\u{fe0f}\u{feff}\u{fff9}-\u{fffb}\u{e0000}-\u{e0fff}]";
        prop::collection::vec(
            prop_oneof![odd, any::<char>().prop_map(String::from), "[ -~]"],
            0..40,
        )
        .prop_map(|parts| parts.concat())
    }

    /// By ranges of the Unicode database, not by the code above.
    fn is_dangerous(c: char) -> bool {
        c.is_control()
            || matches!(
                c,
                '\u{ad}'
                    | '\u{61c}'
                    | '\u{6dd}'
                    | '\u{70f}'
                    | '\u{180e}'
                    | '\u{feff}'
                    | '\u{110bd}'
                    | '\u{110cd}'
            )
            || matches!(c, '\u{600}'..='\u{605}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
            || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
    }

    proptest! {
        #[test]
        fn no_control_or_invisible_character_gets_through(text in hostile()) {
            let shown = printable(&text);
            prop_assert!(!shown.chars().any(is_dangerous), "{:?}", shown);
            prop_assert!(matches!(printable(&shown), Cow::Borrowed(_)), "printable text stays");
        }

        #[test]
        fn json_says_the_same_when_it_is_escaped(texts in prop::collection::vec(hostile(), 0..4)) {
            let json = serde_json::to_string(&texts).unwrap();
            let shown = printable_json(&json);
            prop_assert!(!shown.chars().any(is_dangerous), "{:?}", shown);
            prop_assert_eq!(serde_json::from_str::<Vec<String>>(&shown).unwrap(), texts);
        }
    }
}
