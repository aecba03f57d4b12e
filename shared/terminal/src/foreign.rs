//! Text from a file, a model or a user, made harmless for a terminal.

use std::borrow::Cow;
use std::fmt::{self, Display, Write};
use std::path::Path;

/// Shows `text` within one line: control characters, newlines included, and marks that change the direction of
/// writing appear as escapes, as in `\u001b`.
pub fn foreign(text: &str) -> Foreign<'_> {
    Foreign(Cow::Borrowed(text))
}

/// Shows `path` like [`foreign`]; what is not UTF-8 appears as U+FFFD.
pub fn foreign_path(path: &Path) -> Foreign<'_> {
    Foreign(path.to_string_lossy())
}

/// A text that shows itself within one line; see [`foreign`].
#[derive(Debug, Clone)]
pub struct Foreign<'a>(Cow<'a, str>);

impl Display for Foreign<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&escaped(&self.0, |c| c == '\n' || c == '\t' || is_unsafe(c)))
    }
}

/// `text` without the characters that a terminal obeys, except newline and tab.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    escaped(text, is_unsafe)
}

/// Whether a terminal obeys `c` instead of showing it; newline and tab, which lay out our own text, do not count.
fn is_unsafe(c: char) -> bool {
    // C0 and C1 controls; marks, embeddings, overrides and isolates of bidirectional text; line and paragraph separators.
    let reorders =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && c != '\n' && c != '\t') || reorders
}

/// `text` with every character that `is_bad` written as `\uXXXX`, which JSON reads back as that character.
fn escaped(text: &str, is_bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_bad) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match (is_bad(c), c) {
            (false, _) => shown.push(c),
            (true, '\n') => shown.push_str("\\n"),
            (true, '\t') => shown.push_str("\\t"),
            (true, _) => write!(shown, "\\u{:04x}", c as u32).expect("a string takes any text"),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_and_newlines_are_shown() {
        let hostile = "gpt2\u{1b}[2J\nerror: \u{9b}31m\u{202e}txt.exe\ttab";
        assert_eq!(foreign(hostile).to_string(), "gpt2\\u001b[2J\\nerror: \\u009b31m\\u202etxt.exe\\ttab");
        assert_eq!(harmless(hostile), "gpt2\\u001b[2J\nerror: \\u009b31m\\u202etxt.exe\ttab");
    }

    #[test]
    fn ordinary_text_of_any_script_is_unchanged() {
        for text in ["blocks.1.hook_resid_pre", "Größe 模型 نموذج 🦀", ""] {
            assert_eq!(foreign(text).to_string(), text);
            assert!(matches!(harmless(text), Cow::Borrowed(_)));
        }
    }

    #[test]
    fn a_foreign_text_can_be_padded() {
        assert_eq!(format!("{:6}|", foreign("ab")), "ab    |");
    }
}
