//! Text of which some stands out more than the rest.

use std::fmt::Write;

use crate::foreign::foreign;

/// Backgrounds from faint to strong, of the 256 colours that terminals have.
const SHADES: [u8; 5] = [230, 223, 216, 209, 202];

/// A line of pieces, each with how strongly it stands out, from 0 to 1: by a colour behind it or, without `colours`, the strongest
/// by marks around it.
pub(crate) fn shaded(pieces: &[(String, Option<f32>)], colours: bool) -> String {
    let strongest = pieces.iter().filter_map(|(_, strength)| *strength).fold(0.0, f32::max);
    let mut line = String::new();
    for (text, strength) in pieces {
        let text = foreign(text);
        let written = match strength {
            Some(strength) if colours => {
                let shade = SHADES[((strength * SHADES.len() as f32) as usize).min(SHADES.len() - 1)];
                write!(line, "\u{1b}[48;5;{shade}m\u{1b}[38;5;16m{text}\u{1b}[0m")
            }
            Some(strength) if *strength == strongest => write!(line, "«{text}»"),
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
    fn strength_is_a_colour_or_a_mark_and_no_text_is_obeyed() {
        let pieces =
            [("a ".to_owned(), None), ("b\u{1b}[2J".to_owned(), Some(1.0)), ("\n".to_owned(), Some(0.1))];
        assert_eq!(shaded(&pieces, false), "a «b\\u001b[2J»\\n");
        assert_eq!(
            shaded(&pieces, true),
            "a \u{1b}[48;5;202m\u{1b}[38;5;16mb\\u001b[2J\u{1b}[0m\u{1b}[48;5;230m\u{1b}[38;5;16m\\n\u{1b}[0m"
        );
    }
}
