//! Text of which some stands out more than the rest.

use std::fmt::Write;

use crate::foreign::foreign;

/// Backgrounds from faint to strong, of the 256 colours that terminals have.
const SHADES: [u8; 5] = [230, 223, 216, 209, 202];

/// A piece of a line: foreign text.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// What is written.
    pub text: String,
    /// How strongly it stands out, from 0 to 1, if at all.
    pub strength: Option<f32>,
    /// Whether it is what the line is about.
    pub marked: bool,
}

impl Piece {
    /// A text that does not stand out.
    pub fn plain(text: impl Into<String>) -> Piece {
        Piece { text: text.into(), strength: None, marked: false }
    }
}

/// A line of pieces: each with a colour behind it that says how strongly it stands out, and what is marked underlined or, without
/// `colours`, between « and ».
pub(crate) fn shaded(pieces: &[Piece], colours: bool) -> String {
    let mut line = String::new();
    for Piece { text, strength, marked } in pieces {
        let text = foreign(text);
        let written = match strength {
            Some(strength) if colours => {
                let shade = SHADES[((strength * SHADES.len() as f32) as usize).min(SHADES.len() - 1)];
                let underlined = if *marked { "\u{1b}[4m" } else { "" };
                write!(line, "\u{1b}[48;5;{shade}m\u{1b}[38;5;16m{underlined}{text}\u{1b}[0m")
            }
            _ if *marked && !colours => write!(line, "«{text}»"),
            _ => write!(line, "{text}"),
        };
        written.expect("a string takes any text");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strength_is_a_colour_and_no_text_is_obeyed() {
        let piece = |text: &str, strength, marked| Piece { text: text.into(), strength, marked };
        let pieces =
            [Piece::plain("a "), piece("b\u{1b}[2J", Some(1.0), true), piece("\n", Some(0.1), false)];
        assert_eq!(shaded(&pieces, false), "a «b\\u001b[2J»\\n");
        let strong = "\u{1b}[48;5;202m\u{1b}[38;5;16m\u{1b}[4mb\\u001b[2J\u{1b}[0m";
        let weak = "\u{1b}[48;5;230m\u{1b}[38;5;16m\\n\u{1b}[0m";
        assert_eq!(shaded(&pieces, true), format!("a {strong}{weak}"));
    }
}
