//! Text for terminals. Text from users must not control the terminal, and
//! takes as many columns as the terminal gives it.

use std::{borrow::Cow, fmt::Write as _};

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Whether a character can affect a terminal or the order in which a line is
/// read: control characters (C0, DEL and C1), directions, invisible joiners,
/// line and paragraph separators, interlinear and tag characters.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Escapes every active character of `text`, as `\n`, `\x1b` or `\u{202e}`.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if is_active(c) && u32::from(c) < 0x100 => {
                write!(shown, "\\x{:02x}", u32::from(c)).ok();
            }
            c if is_active(c) => write!(shown, "\\u{{{:x}}}", u32::from(c)).ok().unwrap_or(()),
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// Escapes every active character of JSON as `\u`. The meaning stays the same.
pub(crate) fn escape_json(json: String) -> String {
    // Below 0x20 JSON has escaped everything itself; the rest is not ASCII, or DEL.
    if json.bytes().all(|byte| byte < 0x7f) || !json.contains(is_active) {
        return json;
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_active(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(shown, "\\u{unit:04x}").ok();
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Returns the width on a terminal, in columns.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

/// Iterates over characters, each with the zero-width ones that follow it and may widen it,
/// as U+FE0F does to a heart.
fn clusters(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut further = rest.char_indices().skip(1);
        let end = further.find(|(_, c)| c.width() != Some(0)).map_or(rest.len(), |(at, _)| at);
        let (cluster, after) = rest.split_at(end);
        rest = after;
        (!cluster.is_empty()).then_some(cluster)
    })
}

/// Returns the first `columns` of `text`, with `…` in the last one if text was cut.
pub(crate) fn truncate(text: &str, columns: usize) -> Cow<'_, str> {
    if width(text) <= columns {
        return Cow::Borrowed(text);
    }
    let mut kept = String::new();
    let mut used = 0;
    for cluster in clusters(text) {
        let wide = width(cluster);
        if columns < used + wide + 1 {
            break;
        }
        used += wide;
        kept.push_str(cluster);
    }
    kept.push('…');
    Cow::Owned(kept)
}

/// Wraps `text` into lines of at most `first` and then `further` columns, at spaces where
/// possible. Never returns an empty list.
pub(crate) fn wrap(text: &str, first: usize, further: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_inclusive(' ') {
        let limit = |lines: &[String]| if lines.len() == 1 { first } else { further };
        // The trailing space may exceed the limit; a word wider than any line is
        // broken anyway.
        let columns = width(word.trim_end());
        if 0 < used && columns <= further && limit(&lines) < used + columns {
            lines.push(String::new());
            used = 0;
        }
        for cluster in clusters(word) {
            let wide = width(cluster);
            if cluster != " " && limit(&lines) < used + wide && 0 < used {
                lines.push(String::new());
                used = 0;
            }
            if let Some(line) = lines.last_mut() {
                line.push_str(cluster);
            }
            used += wide;
        }
    }
    for line in &mut lines {
        line.truncate(line.trim_end().len());
    }
    lines
}

/// Formats a count with its noun, as `1 event` and `2 events`.
pub(crate) fn plural(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_play_with_a_terminal() {
        assert_eq!(escape("\x1b[2Jgone\x07"), "\\x1b[2Jgone\\x07");
        assert_eq!(escape("a\nb\u{9b}31m"), "a\\nb\\x9b31m");
        assert_eq!(escape("\u{202e}evil"), "\\u{202e}evil");
        assert!(matches!(escape("旗鱼 🐟 ok"), Cow::Borrowed(_)));
        let json = serde_json::to_string("\x1b\u{9b}\u{7f}\u{202e}\u{e0001}鱼").unwrap();
        let shown = escape_json(json);
        assert_eq!(shown, "\"\\u001b\\u009b\\u007f\\u202e\\udb40\\udc01鱼\"");
        let back: String = serde_json::from_str(&shown).unwrap();
        assert_eq!(back, "\x1b\u{9b}\u{7f}\u{202e}\u{e0001}鱼");
    }

    #[test]
    fn wide_characters_take_two_columns() {
        assert_eq!(width("旗鱼a"), 5);
        assert_eq!(truncate("旗鱼直播间", 6), "旗鱼…");
        assert_eq!(truncate("hello", 5), "hello");
        assert_eq!(truncate("hello!", 5), "hell…");
    }

    #[test]
    fn lines_break_at_spaces_and_nowhere_overflow() {
        assert_eq!(wrap("the quick brown fox", 9, 6), ["the quick", "brown", "fox"]);
        assert_eq!(wrap("", 9, 6), [""]);
        assert_eq!(wrap("旗鱼直播间", 4, 4), ["旗鱼", "直播", "间"]);
        assert_eq!(wrap("aaaaaaaaaa b", 4, 4), ["aaaa", "aaaa", "aa b"]);
        assert_eq!(wrap("a: 旗鱼直播间", 7, 7), ["a: 旗鱼", "直播间"]);
        let hearts = "❤\u{fe0f}".repeat(9);
        assert_eq!(wrap(&hearts, 4, 4).len(), 5, "two columns each");
        assert_eq!(width(&truncate(&hearts, 8)), 7, "and none is parted");
        for text in ["旗鱼 a 直播间 bcdefgh", "   x   ", "one two three four five", &hearts] {
            for columns in 2..9 {
                let lines = wrap(text, columns, columns);
                assert!(lines.iter().all(|line| width(line) <= columns), "{columns}: {lines:?}");
            }
        }
    }
}
