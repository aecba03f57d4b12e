//! The header of a NumPy file: a magic string, a version, a length, and a Python literal of that length such as
//! `{'descr': '<u2', 'fortran_order': False, 'shape': (8, 128), }`.

use std::io::{Error, ErrorKind, Read, Result};

/// The longest header that is read, in bytes. NumPy's own limit is 10,000 characters.
const LONGEST: usize = 1 << 16;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// NumPy's name of the numbers' type, as in `<u2`.
    pub(crate) kind: String,
    pub(crate) fortran_order: bool,
    pub(crate) shape: Vec<u64>,
}

/// Reads the header; the numbers follow it.
///
/// # Errors
/// Of kind `InvalidData` or `UnexpectedEof` if the file is not a NumPy file.
pub(crate) fn header(reader: &mut impl Read) -> Result<Header> {
    let invalid =
        |what: &str| Error::new(ErrorKind::InvalidData, format!("its header is not NumPy's: {what}"));
    let mut front = [0; 8];
    reader.read_exact(&mut front)?;
    if !front.starts_with(b"\x93NUMPY") {
        return Err(invalid("it does not begin with \\x93NUMPY"));
    }
    let length = match front[6] {
        1 => {
            let mut length = [0; 2];
            reader.read_exact(&mut length)?;
            usize::from(u16::from_le_bytes(length))
        }
        2 | 3 => {
            let mut length = [0; 4];
            reader.read_exact(&mut length)?;
            u32::from_le_bytes(length) as usize
        }
        other => return Err(invalid(&format!("version {other}"))),
    };
    if length > LONGEST {
        return Err(invalid(&format!("it would have {length} bytes")));
    }
    let mut text = vec![0; length];
    reader.read_exact(&mut text)?;
    let text = String::from_utf8(text).map_err(|_| invalid("it is not UTF-8"))?;
    Literal(&text).header().ok_or_else(|| invalid(text.trim_end()))
}

/// What is left of a literal.
struct Literal<'a>(&'a str);

impl<'a> Literal<'a> {
    fn header(mut self) -> Option<Header> {
        let (mut kind, mut fortran_order, mut shape) = (None, None, None);
        self.sign("{")?;
        while self.sign("}").is_none() {
            let key = self.text()?;
            self.sign(":")?;
            match key {
                "descr" => kind = Some(self.text()?.to_owned()),
                "fortran_order" => fortran_order = Some(self.truth()?),
                "shape" => shape = Some(self.sizes()?),
                _ => return None,
            }
            if self.sign(",").is_none() {
                self.sign("}")?;
                break;
            }
        }
        self.0.trim().is_empty().then_some(())?;
        Some(Header { kind: kind?, fortran_order: fortran_order?, shape: shape? })
    }

    fn sign(&mut self, sign: &str) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(sign)?;
        Some(())
    }

    fn text(&mut self) -> Option<&'a str> {
        let quote = if self.sign("'").is_some() { '\'' } else { self.sign("\"").map(|()| '"')? };
        let (text, rest) = self.0.split_once(quote)?;
        self.0 = rest;
        Some(text)
    }

    fn truth(&mut self) -> Option<bool> {
        if self.sign("True").is_some() { Some(true) } else { self.sign("False").map(|()| false) }
    }

    /// A tuple; Python 2 wrote its numbers with an L.
    fn sizes(&mut self) -> Option<Vec<u64>> {
        let mut sizes = Vec::new();
        self.sign("(")?;
        while self.sign(")").is_none() {
            self.0 = self.0.trim_start();
            let digits = self.0.len() - self.0.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            sizes.push(self.0[..digits].parse().ok()?);
            self.0 = &self.0[digits..];
            let _ = self.sign("L");
            if self.sign(",").is_none() {
                self.sign(")")?;
                break;
            }
        }
        Some(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(literal: &str) -> Option<(String, bool, Vec<u64>)> {
        Literal(literal).header().map(|header| (header.kind, header.fortran_order, header.shape))
    }

    #[test]
    fn the_headers_that_numpy_writes_are_read() {
        let read = parse("{'descr': '<u2', 'fortran_order': False, 'shape': (8, 128), }      \n");
        assert_eq!(read, Some(("<u2".to_owned(), false, vec![8, 128])));
        let one = parse("{'descr': \"|u1\", 'fortran_order': True, 'shape': (3L,)}\n");
        assert_eq!(one, Some(("|u1".to_owned(), true, vec![3])));
        assert!(parse("{'descr': '<u2', 'fortran_order': False, 'shape': ()}").unwrap().2.is_empty());
        for odd in [
            "",
            "{",
            "{}",
            "{'descr': '<u2', 'fortran_order': False}",
            "{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (1,)}",
            "{'descr': '<u2', 'fortran_order': 0, 'shape': (1,)}",
            "{'descr': '<u2', 'fortran_order': False, 'shape': (-1,)}",
            "{'descr': '<u2', 'fortran_order': False, 'shape': (99999999999999999999,)}",
            "{'descr': '<u2', 'fortran_order': False, 'shape': (1,)} + 1",
        ] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_header_that_claims_gigabytes_is_refused_unallocated() {
        let file = [&b"\x93NUMPY\x02\x00"[..], &u32::MAX.to_le_bytes(), b"{}"].concat();
        assert_eq!(header(&mut &file[..]).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
