//! Cuts long documents into pieces whose tokens, in sequence, are the tokens of the whole document.
//!
//! A tokenizer needs about a hundred times a document's length in memory, so a long document is cut where the tokenizer
//! itself would split it. Tokenizers first split a text into words, from left to right, and then tokenize each word on its
//! own. In every kind of splitting that [`Places::of`] knows, a space begins a word if it follows a letter, a digit or a
//! sign. Most kinds also begin a word at a line end that follows a letter, and at a punctuation mark that follows a letter.
//! A word does not depend on the words before it, so the text may be cut there.
//!
//! Each cut is also tested: the tokens of the text around it must equal those of its two sides. (Normalizers can strip or
//! add characters at the ends of a text, and added tokens can swallow the space in front of them.) A stretch of text
//! without a place to cut is a piece of its own, up to a limit. Beyond the limit, the rest of its document counts as damage.

use std::sync::Arc;

use anyhow::Result;
use language_model::{Places, Tokenizer};

use crate::documents::{Content, Damage, DamageKind, Document, Place};

/// Sizes, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Documents up to this size are not cut; pieces of longer ones have about this size.
    piece: usize,
    /// The longest stretch without a place to cut.
    limit: usize,
    /// The text on either side of a cut with which it is tested.
    around: usize,
}

/// Few real documents are longer than a piece. A tokenizer needs about a gigabyte for a text at the limit.
pub(crate) const SIZES: Sizes = Sizes { piece: 256 << 10, limit: 8 << 20, around: 512 };

/// How many places of one kind are tested in a stretch of text before another kind is.
const TRIES: usize = 16;

/// The documents with long ones in pieces.
pub(crate) struct Pieces<I> {
    documents: I,
    tokenizer: Option<Arc<Tokenizer>>,
    sizes: Sizes,
    /// The long document that is being cut.
    open: Option<Open>,
    /// The rest of a document is passed over.
    skipping: bool,
}

/// A document that is being cut.
struct Open {
    place: Place,
    /// What was read of it.
    text: String,
    /// Bytes of `text` that are in pieces already.
    done: usize,
    /// No piece of it was made yet.
    begins: bool,
    /// All of it was read.
    ends: bool,
}

/// The next piece of a document.
enum Cut {
    /// The text from its beginning up to the first place is a piece, and the rest begins at the second one.
    At(usize, usize),
    /// All there is.
    Rest,
    /// More must be read.
    More,
    TooLong,
}

impl<I: Iterator<Item = Result<Document>>> Pieces<I> {
    /// Cuts `documents`; without a tokenizer none is text.
    pub(crate) fn new(documents: I, tokenizer: Option<Arc<Tokenizer>>, sizes: Sizes) -> Pieces<I> {
        Pieces { documents, tokenizer, sizes, open: None, skipping: false }
    }

    /// Accepts what was read, and passes on what needs no cutting.
    fn take_in(&mut self, document: Document) -> Option<Document> {
        let Document { place, content } = document;
        match content {
            Content::Text(text) if text.len() > self.sizes.piece => {
                self.open = Some(Open { place, text, done: 0, begins: true, ends: true });
            }
            Content::Part { begins: true, text, ends } => {
                self.skipping = false;
                self.open = Some(Open { place, text, done: 0, begins: true, ends });
            }
            Content::Part { text, ends, .. } => match &mut self.open {
                Some(open) => {
                    open.text.drain(..open.done);
                    open.done = 0;
                    open.text.push_str(&text);
                    open.ends = ends;
                }
                None if self.skipping => {}
                None => unreachable!("a part follows the beginning of its document"),
            },
            content => return Some(Document { place, content }),
        }
        None
    }

    /// A piece of the open document; `None` if more of it must be read first.
    fn next_piece(&mut self) -> Result<Option<Document>> {
        let Some(open) = &mut self.open else { return Ok(None) };
        let rest = &open.text[open.done..];
        let cut = match &self.tokenizer {
            Some(tokenizer) => next_cut(rest, open.ends, tokenizer, self.sizes)?,
            None => Cut::Rest, // whoever tokenizes says that it cannot
        };
        let (begins, place) = (std::mem::take(&mut open.begins), open.place.clone());
        let content = match cut {
            Cut::More => {
                open.begins = begins;
                return Ok(None);
            }
            Cut::At(end, next) => {
                let text = rest[..end].to_owned();
                open.done += next;
                Content::Part { text, begins, ends: false }
            }
            Cut::Rest => {
                let text = rest.to_owned();
                self.open = None;
                Content::Part { text, begins, ends: true }
            }
            Cut::TooLong => {
                self.skipping = !open.ends;
                self.open = None;
                let what = format!(
                    "{} MiB of text without a place where the tokenizer is known to split it",
                    self.sizes.limit >> 20
                );
                Content::Damaged(Damage::new(DamageKind::TooLong, what))
            }
        };
        Ok(Some(Document { place, content }))
    }
}

impl<I: Iterator<Item = Result<Document>>> Iterator for Pieces<I> {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Result<Document>> {
        loop {
            match self.next_piece() {
                Ok(None) => {}
                Ok(Some(piece)) => return Some(Ok(piece)),
                Err(error) => return Some(Err(error)),
            }
            match self.documents.next()? {
                Err(error) => return Some(Err(error)),
                Ok(document) => {
                    if let Some(document) = self.take_in(document) {
                        return Some(Ok(document));
                    }
                }
            }
        }
    }
}

/// Where to cut a text; `ends` says that nothing follows it.
fn next_cut(text: &str, ends: bool, tokenizer: &Tokenizer, sizes: Sizes) -> Result<Cut> {
    let Sizes { piece, limit, around } = sizes;
    if ends && text.len() <= piece {
        return Ok(Cut::Rest);
    }
    // Stretches of doubling length, so that a text without a place to cut is searched once.
    let (mut from, mut to) = (piece / 2, piece);
    loop {
        if text.len() < to + around && !ends {
            return Ok(Cut::More);
        }
        let stretch = from..to.min(text.len());
        if let Some((end, next)) = place_to_cut(text, stretch, tokenizer, around)? {
            return Ok(Cut::At(end, next));
        }
        if to >= text.len() && text.len() <= limit {
            return Ok(Cut::Rest);
        }
        if to >= limit {
            return Ok(Cut::TooLong);
        }
        (from, to) = (to, (2 * to).min(limit));
    }
}

/// A kind of place: whether a word begins at the second of these characters.
type Kind = fn(char, char, Option<char>) -> bool;

/// A place in `stretch` where `text` may be cut: the end of what is before it and the beginning of what is behind it,
/// between which there is nothing or a space that the tokenizer puts there by itself.
fn place_to_cut(
    text: &str,
    stretch: std::ops::Range<usize>,
    tokenizer: &Tokenizer,
    around: usize,
) -> Result<Option<(usize, usize)>> {
    let Places { space, newline, punctuation } = tokenizer.places();
    let kinds: [(bool, Kind); 3] = [
        (space, |before, at, after| {
            (before.is_ascii_graphic() || is_plain(before))
                && at == ' '
                && after.is_some_and(|c| !c.is_whitespace())
        }),
        (newline, |before, at, after| {
            is_plain(before) && at == '\n' && after.is_some_and(|c| !c.is_whitespace())
        }),
        (punctuation, |before, at, _| is_plain(before) && ".,;:!?)。，、；：！？".contains(at)),
    ];
    let stretch = text.ceil_char_boundary(stretch.start)..text.floor_char_boundary(stretch.end);
    for (_, is_place) in kinds.into_iter().filter(|(known, _)| *known) {
        // From the end, so that pieces are long.
        let places = text[stretch.clone()].char_indices().rev();
        let places = places.map(|(offset, character)| (stretch.start + offset, character));
        let is_place = |(start, character): &(usize, char)| {
            let before = text[..*start].chars().next_back();
            let after = text[start + character.len_utf8()..].chars().next();
            before.is_some_and(|before| is_place(before, *character, after))
        };
        for (place, _) in places.filter(is_place).take(TRIES) {
            if let Some(next) = tried_out(text, place, tokenizer, around)? {
                return Ok(Some((place, next)));
            }
        }
    }
    Ok(None)
}

/// Where the text behind the cut at `place` begins so that the tokens around it are those of both sides together.
fn tried_out(text: &str, place: usize, tokenizer: &Tokenizer, around: usize) -> Result<Option<usize>> {
    let around = around.max(2 * tokenizer.longest_added_token());
    let start = text.floor_char_boundary(place.saturating_sub(around));
    let end = text.ceil_char_boundary((place + around).min(text.len()));
    let whole = tokenizer.encode(&text[start..end])?;
    let before = tokenizer.encode(&text[start..place])?;
    let space = text[place..].starts_with(' ');
    for next in [Some(place), space.then_some(place + 1)].into_iter().flatten() {
        let behind = tokenizer.encode(&text[next..end])?;
        if whole.len() == before.len() + behind.len()
            && whole.starts_with(&before)
            && whole.ends_with(&behind)
        {
            return Ok(Some(next));
        }
    }
    Ok(None)
}

/// An undisputed letter or digit: no combining mark, no letter in a circle.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(c,
            'À'..='Ö' | 'Ø'..='ö' | 'ø'..='ɏ' // Latin
            | 'Α'..='Ρ' | 'Σ'..='Ϋ' | 'ά'..='ώ' | 'А'..='я' // Greek, Cyrillic
            | 'א'..='ת' | 'ء'..='غ' | 'ف'..='ي' // Hebrew, Arabic
            | 'ぁ'..='ゖ' | 'ァ'..='ヺ' | '㐀'..='䶿' | '一'..='鿿' | '가'..='힣') // Kana, Han, Hangul
}

#[cfg(test)]
mod tests;
