//! Tables of a flatbuffer from anywhere: whatever its bytes are, reading ends with a value or with `None`.

/// The most fields or elements that are believed in.
const MOST: usize = 1 << 20;

/// A table in a flatbuffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A vector in a flatbuffer: where its first element is, and how many there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vector<'a> {
    bytes: &'a [u8],
    at: usize,
    pub(crate) len: usize,
}

fn fixed<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// The place that the offset at `at` leads to.
fn follow(bytes: &[u8], at: usize) -> Option<usize> {
    at.checked_add(u32::from_le_bytes(fixed(bytes, at)?) as usize)
}

impl<'a> Table<'a> {
    /// The outermost table of `bytes`.
    pub(crate) fn root(bytes: &'a [u8]) -> Option<Table<'a>> {
        Some(Table { bytes, at: follow(bytes, 0)? })
    }

    /// Where the field with this place is; `None` if the table leaves it out.
    fn field(&self, place: usize) -> Option<usize> {
        let back = i32::from_le_bytes(fixed(self.bytes, self.at)?);
        let fields = usize::try_from((self.at as i64).checked_sub(i64::from(back))?).ok()?;
        let size = usize::from(u16::from_le_bytes(fixed(self.bytes, fields)?));
        let entry = 4 + 2 * place;
        if entry + 2 > size {
            return None;
        }
        match u16::from_le_bytes(fixed(self.bytes, fields.checked_add(entry)?)?) {
            0 => None,
            offset => self.at.checked_add(usize::from(offset)),
        }
    }

    pub(crate) fn has(&self, place: usize) -> bool {
        self.field(place).is_some()
    }

    /// A number, or 0, which is what a table that leaves it out means.
    pub(crate) fn number<const N: usize>(&self, place: usize) -> [u8; N] {
        self.field(place).and_then(|at| fixed(self.bytes, at)).unwrap_or([0; N])
    }

    pub(crate) fn table(&self, place: usize) -> Option<Table<'a>> {
        Some(Table { bytes: self.bytes, at: follow(self.bytes, self.field(place)?)? })
    }

    pub(crate) fn vector(&self, place: usize) -> Option<Vector<'a>> {
        let at = follow(self.bytes, self.field(place)?)?;
        let len = u32::from_le_bytes(fixed(self.bytes, at)?) as usize;
        (len <= MOST).then_some(Vector { bytes: self.bytes, at: at + 4, len })
    }

    pub(crate) fn text(&self, place: usize) -> Option<&'a str> {
        let vector = self.vector(place)?;
        std::str::from_utf8(vector.bytes.get(vector.at..vector.at.checked_add(vector.len)?)?).ok()
    }
}

impl<'a> Vector<'a> {
    /// The table with this number.
    pub(crate) fn table(&self, number: usize) -> Option<Table<'a>> {
        let inside = number < self.len;
        inside.then(|| Some(Table { bytes: self.bytes, at: follow(self.bytes, self.at + 4 * number)? }))?
    }

    /// The structure of two numbers of 64 bits with this number.
    pub(crate) fn pair(&self, number: usize) -> Option<(i64, i64)> {
        let at = (number < self.len).then(|| self.at + 16 * number)?;
        let value = |at| Some(i64::from_le_bytes(fixed(self.bytes, at)?));
        Some((value(at)?, value(at + 8)?))
    }
}
