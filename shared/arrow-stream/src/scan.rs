//! Where the rows and the tokens of a stream lie in its file. Record batches are not decoded: only their headers and offsets
//! are read, so that rows can be read from their places in any order.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::format::{self, field, kind, message, of_type, record_batch, schema};
use crate::table::Table;
use crate::{Error, NumberType, Result};

/// The longest header that is read, in bytes.
const LONGEST_HEADER: u64 = 64 << 20;
/// The deepest nesting of columns.
const DEEPEST: usize = 16;

/// The columns that are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The column of rows; `None` for the only one of lists of lists of numbers.
    pub rows: Option<&'a str>,
    /// The column of tokens; a stream can be without.
    pub tokens: &'a str,
}

/// The type of tokens, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenType {
    /// int32
    I32,
    /// int64
    I64,
}

impl TokenType {
    /// Bytes of a token.
    fn bytes(self) -> u64 {
        match self {
            TokenType::I32 => 4,
            TokenType::I64 => 8,
        }
    }
}

/// What a stream holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Name of the column of rows.
    pub name: String,
    /// Type of the rows' numbers.
    pub numbers: NumberType,
    /// T, rows of a record; 0 in a stream without records.
    pub length: u64,
    /// d, numbers of a row; 0 in a stream without records.
    pub width: u64,
    /// Type of the tokens, where there are any.
    pub tokens: Option<TokenType>,
    /// Where the records are.
    pub batches: Vec<Batch>,
}

/// Records that lie together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// How many there are.
    pub records: u64,
    /// Where the first number of their rows is, in bytes from the beginning of the file.
    pub rows_at: u64,
    /// Where the first of their tokens is.
    pub tokens_at: u64,
}

fn unusable<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Unusable(what.into()))
}

/// For what a header leaves out, or what lies outside it.
fn required<T>(value: Option<T>, what: &str) -> Result<T> {
    value.ok_or_else(|| Error::Unusable(what.to_owned()))
}

/// Reads the headers of the stream in `file`, which has `bytes` bytes.
///
/// # Errors
/// A file that is not a whole stream, columns of other types, nulls, compression, and records of different sizes.
pub fn scan(file: &File, bytes: u64, wanted: &Wanted<'_>) -> Result<Found> {
    let mut place = 0;
    let (header, _) = required(next(file, bytes, &mut place)?, "it holds nothing")?;
    let columns = Schema::read(&header)?;
    let rows = columns.rows(wanted.rows)?;
    let (numbers, nesting) = nested_numbers(columns.fields[rows].table)?;
    let token_column = columns.named(wanted.tokens);
    let tokens = token_column.map(|column| tokens_of(&columns.fields[column])).transpose()?;

    let mut found = Found {
        name: columns.fields[rows].name.clone(),
        numbers,
        length: 0,
        width: 0,
        tokens: tokens.map(|(kind, _)| kind),
        batches: Vec::new(),
    };
    while let Some((header, body)) = next(file, bytes, &mut place)? {
        let message = root(&header)?;
        let [kind] = message.number(message::HEADER_TYPE);
        match kind {
            format::RECORD_BATCH => {}
            format::DICTIONARY_BATCH => continue,
            other => return unusable(format!("it has a message of kind {other} where records are expected")),
        }
        let batch = required(message.table(message::HEADER), "a record batch has no header")?;
        if batch.has(record_batch::COMPRESSION) {
            return unusable("its record batches are compressed, which datasets does not do");
        }
        let records = i64::from_le_bytes(batch.number(record_batch::LENGTH));
        let records = required(u64::try_from(records).ok(), "a record batch has a negative length")?;
        if records == 0 {
            continue;
        }
        let reader = Reader { file, batch, body };
        let read = reader.lists(columns.fields[rows].before, records, &nesting, numbers.bytes())?;
        let (length, width) = (read.sizes[0], read.sizes[1]);
        if found.batches.is_empty() {
            (found.length, found.width) = (length, width);
        }
        if (length, width) != (found.length, found.width) {
            return unusable(format!(
                "a record of {length} rows of {width} numbers follows one of {} rows of {}",
                found.length, found.width
            ));
        }
        let tokens_at = match (token_column, tokens) {
            (Some(column), Some((kind, nesting))) => {
                let read = reader.lists(columns.fields[column].before, records, &[nesting], kind.bytes())?;
                if read.sizes != [length] {
                    return unusable(format!(
                        "its records have {length} rows and {} tokens; there is one token for each row",
                        read.sizes[0]
                    ));
                }
                read.numbers_at
            }
            _ => 0,
        };
        found.batches.push(Batch { records, rows_at: read.numbers_at, tokens_at });
    }
    Ok(found)
}

/// A message's header, and where its body begins and ends.
type Message = (Vec<u8>, (u64, u64));

/// The message at `place`, which moves past it; `None` at the end of the stream.
fn next(file: &File, bytes: u64, place: &mut u64) -> Result<Option<Message>> {
    if *place == bytes {
        return Ok(None); // a stream may end without its mark
    }
    let cut_short = || Error::Unusable(format!("it is cut short: it ends at byte {bytes}, within a message"));
    if bytes - *place < 8 {
        return Err(cut_short());
    }
    let mut front = [0; 8];
    file.read_exact_at(&mut front, *place)?;
    let word = |at: usize| u32::from_le_bytes([front[at], front[at + 1], front[at + 2], front[at + 3]]);
    if word(0) != u32::MAX {
        return unusable(format!("it is not an Arrow stream, or damaged at byte {place}"));
    }
    let (length, start) = (u64::from(word(4)), *place + 8);
    if length == 0 {
        return Ok(None);
    }
    if length > LONGEST_HEADER {
        return unusable(format!("it is damaged at byte {place}: a header of {length} bytes"));
    }
    if start + length > bytes {
        return Err(cut_short());
    }
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, start)?;
    let body_bytes = i64::from_le_bytes(root(&header)?.number(message::BODY_LENGTH));
    let body_bytes = required(u64::try_from(body_bytes).ok(), "a message has a body of negative length")?;
    let body = start + length;
    let end = body.checked_add(body_bytes).filter(|&end| end <= bytes).ok_or_else(cut_short)?;
    *place = end;
    Ok(Some((header, (body, end))))
}

fn root(header: &[u8]) -> Result<Table<'_>> {
    required(Table::root(header), "a header is damaged")
}

/// A column of the schema.
struct Field<'a> {
    name: String,
    table: Table<'a>,
    /// Nodes and buffers of the columns before it.
    before: (usize, usize),
}

/// The columns of a stream.
struct Schema<'a> {
    fields: Vec<Field<'a>>,
}

impl<'a> Schema<'a> {
    fn read(header: &'a [u8]) -> Result<Schema<'a>> {
        let message = root(header)?;
        if message.number(message::HEADER_TYPE) != [format::SCHEMA] {
            return unusable("it does not begin with a schema");
        }
        let schema = message.table(message::HEADER);
        let columns =
            required(schema.and_then(|schema| schema.vector(schema::FIELDS)), "its schema has no columns")?;
        let (mut fields, mut before) = (Vec::new(), (0, 0));
        for number in 0..columns.len {
            let table = required(columns.table(number), "its schema is damaged")?;
            let name = table.text(field::NAME).unwrap_or_default().to_owned();
            let own = size(table, 0)?;
            fields.push(Field { name, table, before });
            before = (before.0 + own.0, before.1 + own.1);
        }
        Ok(Schema { fields })
    }

    fn named(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| field.name == name)
    }

    /// The column of rows: the one of this name, or the only one of lists of lists of numbers.
    fn rows(&self, name: Option<&str>) -> Result<usize> {
        let columns = 0..self.fields.len();
        let rows: Vec<usize> =
            columns.filter(|&column| nested_numbers(self.fields[column].table).is_ok()).collect();
        let names =
            || rows.iter().map(|&column| self.fields[column].name.as_str()).collect::<Vec<_>>().join(", ");
        match (name, &rows[..]) {
            (Some(name), _) => match self.named(name) {
                Some(column) => Ok(column),
                None => unusable(format!("it has no column {name}; those of rows are: {}", names())),
            },
            (None, [one]) => Ok(*one),
            (None, []) => unusable("it has no column of rows of float16 or float32, [T, d] a record"),
            (None, _) => unusable(format!("it has several columns of rows, {}; --hook takes one", names())),
        }
    }
}

/// How a list states where its elements begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nesting {
    /// So many elements each.
    Fixed(u64),
    /// Offsets of 4 or 8 bytes.
    Offsets(u64),
}

/// Both levels of a column of lists of lists of numbers, and the numbers' type.
fn nested_numbers(column: Table<'_>) -> Result<(NumberType, [Nesting; 2])> {
    let (outer, child) = list(column)?;
    let (inner, child) = list(child)?;
    if child.number(field::TYPE_TYPE) != [kind::FLOATING_POINT] {
        return unusable("its rows are not of floating-point numbers");
    }
    let precision =
        child.table(field::TYPE).map_or(0, |own| i16::from_le_bytes(own.number(of_type::PRECISION)));
    match precision {
        format::HALF => Ok((NumberType::Half, [outer, inner])),
        format::SINGLE => Ok((NumberType::Single, [outer, inner])),
        _ => unusable("its numbers are float64; float16 and float32 can be read"),
    }
}

/// A column of lists of tokens: their type, and how the lists are nested.
fn tokens_of(column: &Field<'_>) -> Result<(TokenType, Nesting)> {
    let name = &column.name;
    let (nesting, child) = list(column.table)?;
    if child.number(field::TYPE_TYPE) != [kind::INT] {
        return unusable(format!("its column {name} does not hold whole numbers"));
    }
    let own = required(child.table(field::TYPE), "its schema is damaged")?;
    let bits = i32::from_le_bytes(own.number(of_type::INT_BITS));
    match bits {
        // No token is so large that a sign makes a difference.
        32 => Ok((TokenType::I32, nesting)),
        64 => Ok((TokenType::I64, nesting)),
        _ => unusable(format!("its column {name} holds integers of {bits} bits; 32 or 64 are expected")),
    }
}

/// How a column of lists is nested, and the column of its elements.
fn list(column: Table<'_>) -> Result<(Nesting, Table<'_>)> {
    let nesting = match column.number(field::TYPE_TYPE) {
        [kind::LIST] => Nesting::Offsets(4),
        [kind::LARGE_LIST] => Nesting::Offsets(8),
        [kind::FIXED_SIZE_LIST] => {
            let own = required(column.table(field::TYPE), "its schema is damaged")?;
            let size = i32::from_le_bytes(own.number(of_type::LIST_SIZE));
            Nesting::Fixed(required(u64::try_from(size).ok(), "a list has a negative size")?)
        }
        [other] => return unusable(format!("a column is of Arrow's type {other} where lists are expected")),
    };
    let children = column.vector(field::CHILDREN).filter(|children| children.len == 1);
    let child = children.and_then(|children| children.table(0));
    Ok((nesting, required(child, "a list has no elements in the schema")?))
}

/// Nodes and buffers of a column and those below it.
fn size(column: Table<'_>, depth: usize) -> Result<(usize, usize)> {
    if depth > DEEPEST {
        return unusable(format!("its columns are nested more than {DEEPEST} deep"));
    }
    if column.has(field::DICTIONARY) {
        return Ok((1, 2)); // the values are elsewhere
    }
    let [own] = column.number(field::TYPE_TYPE);
    let mut sum = match own {
        kind::NULL => (1, 0),
        kind::FIXED_SIZE_LIST | kind::STRUCT => (1, 1),
        kind::LIST | kind::LARGE_LIST | kind::MAP => (1, 2),
        kind::UTF8 | kind::LARGE_UTF8 | kind::BINARY | kind::LARGE_BINARY => (1, 3),
        kind::INT
        | kind::FLOATING_POINT
        | kind::BOOL
        | kind::FIXED_SIZE_BINARY
        | kind::DURATION
        | kind::DECIMAL..=kind::INTERVAL => (1, 2),
        other => return unusable(format!("it has a column of Arrow's type {other}, which is not read")),
    };
    if let Some(children) = column.vector(field::CHILDREN) {
        for number in 0..children.len {
            let below = size(required(children.table(number), "its schema is damaged")?, depth + 1)?;
            sum = (sum.0 + below.0, sum.1 + below.1);
        }
    }
    Ok(sum)
}

/// Reads the places of columns of a record batch.
struct Reader<'a> {
    file: &'a File,
    batch: Table<'a>,
    /// Where the buffers begin and end in the file.
    body: (u64, u64),
}

/// A column of lists of one size.
struct Lists {
    /// Elements of a list on each level.
    sizes: Vec<u64>,
    /// Where the numbers begin in the file.
    numbers_at: u64,
}

impl Reader<'_> {
    /// The column that begins at these numbers of nodes and buffers: lists as `nesting` says, `records` of the outermost,
    /// around numbers of `element` bytes.
    fn lists(&self, at: (usize, usize), records: u64, nesting: &[Nesting], element: u64) -> Result<Lists> {
        let (mut node, mut buffer) = at;
        let (mut count, mut sizes) = (records, Vec::new());
        for &level in nesting {
            self.check_node(node, count)?;
            node += 1;
            let size = match level {
                Nesting::Fixed(size) => {
                    buffer += 1;
                    size
                }
                Nesting::Offsets(bytes) => {
                    buffer += 2;
                    self.regular_offsets(buffer - 1, count, bytes)?
                }
            };
            sizes.push(size);
            let elements = count.checked_mul(size).filter(|&elements| (1..1 << 56).contains(&elements));
            count = required(elements, "its lists are empty, or beyond counting")?;
        }
        self.check_node(node, count)?;
        let (numbers_at, there) = self.buffer(buffer + 1)?;
        let needed = count * element;
        if needed > there {
            return unusable(format!("{count} numbers need {needed} bytes, and their buffer has {there}"));
        }
        Ok(Lists { sizes, numbers_at })
    }

    /// Checks that a column has `count` values, none of which is missing.
    fn check_node(&self, number: usize, count: u64) -> Result<()> {
        let nodes = self.batch.vector(record_batch::NODES);
        let node = nodes.and_then(|nodes| nodes.pair(number));
        let (length, nulls) = required(node, "a record batch has too few columns")?;
        if nulls != 0 {
            return unusable(format!("{nulls} values are missing (null)"));
        }
        match u64::try_from(length) {
            Ok(length) if length == count => Ok(()),
            _ => unusable(format!("a column has {length} values where {count} are expected")),
        }
    }

    /// Where a buffer begins, and its bytes.
    fn buffer(&self, number: usize) -> Result<(u64, u64)> {
        let buffers = self.batch.vector(record_batch::BUFFERS);
        let inside = || {
            let (offset, length) = buffers?.pair(number)?;
            let start = self.body.0.checked_add(u64::try_from(offset).ok()?)?;
            let bytes = u64::try_from(length).ok()?;
            (start.checked_add(bytes)? <= self.body.1).then_some((start, bytes))
        };
        required(inside(), "a buffer lies outside its record batch")
    }

    /// The size of `count` lists that all have the same, from their offsets of `bytes` bytes.
    fn regular_offsets(&self, buffer: usize, count: u64, bytes: u64) -> Result<u64> {
        let (start, there) = self.buffer(buffer)?;
        let needed =
            count.checked_add(1).and_then(|count| count.checked_mul(bytes)).filter(|&needed| needed <= there);
        let end = start + required(needed, "there are fewer offsets than lists")?;
        let (mut size, mut expected, mut number) = (0, 0_u64, 0_u64);
        let mut piece = Vec::new();
        let mut place = start;
        while place < end {
            piece.resize((end - place).min(1 << 20) as usize, 0);
            self.file.read_exact_at(&mut piece, place)?;
            for offset in piece.chunks_exact(bytes as usize) {
                let mut wide = [0; 8];
                wide[..offset.len()].copy_from_slice(offset);
                let offset = u64::from_le_bytes(wide);
                if number == 1 {
                    (size, expected) = (offset, offset);
                }
                if offset != expected {
                    return unusable(format!(
                        "list {} is of another size than the first; all have one size",
                        number.saturating_sub(1)
                    ));
                }
                expected = required(expected.checked_add(size), "its offsets are beyond counting")?;
                number += 1;
            }
            place += piece.len() as u64;
        }
        Ok(size)
    }
}
