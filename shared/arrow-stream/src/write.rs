//! Writes a stream: its schema, record batches, and the mark of its end.

use std::io::{Result, Write};

use flatbuffers::{FlatBufferBuilder, TableFinishedWIPOffset, VOffsetT, WIPOffset};

use crate::NumberType;
use crate::format::{self, field, kind, message, of_type, record_batch, schema};

/// Buffers begin at multiples of so many bytes.
const ALIGNMENT: usize = 64;

/// The columns of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// Name of the column of rows, `[T, d]`.
    pub rows: &'a str,
    /// Type of their numbers.
    pub numbers: NumberType,
    /// T.
    pub length: usize,
    /// d.
    pub width: usize,
    /// Name of the column of tokens, `[T]` of int32, if there is to be one.
    pub tokens: Option<&'a str>,
    /// What is noted with the column of rows: pairs of a key and a text.
    pub rows_metadata: &'a [(&'a str, &'a str)],
    /// What is noted with the schema.
    pub metadata: &'a [(&'a str, &'a str)],
}

/// Writes a stream to `W`.
#[derive(Debug)]
pub struct StreamWriter<'a, W> {
    out: W,
    columns: Columns<'a>,
}

type Builder<'a> = FlatBufferBuilder<'a>;
type Done = WIPOffset<TableFinishedWIPOffset>;

/// The place of a table's field in its list of fields, as flatbuffers counts.
fn slot(place: usize) -> VOffsetT {
    (4 + 2 * place) as VOffsetT
}

impl<'a, W: Write> StreamWriter<'a, W> {
    /// Begins a stream of these columns.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(out: W, columns: Columns<'a>) -> Result<Self> {
        let mut writer = StreamWriter { out, columns };
        let header = schema_message(&columns);
        writer.message(&header)?;
        Ok(writer)
    }

    /// Writes a record batch: `rows` are the bytes of whole records `[records, T, d]`, little-endian, `tokens` `[records, T]`
    /// are left out where the stream has none.
    ///
    /// # Errors
    /// Those of the output.
    ///
    /// # Panics
    /// If `rows` are not whole records, `tokens` are not of as many, or there are 2^31 numbers or more, which Arrow does not count.
    pub fn write(&mut self, rows: &[u8], tokens: &[i32]) -> Result<()> {
        let Columns { length, width, numbers, .. } = self.columns;
        let record = length * width * numbers.bytes() as usize;
        let records = rows.len() / record;
        assert_eq!(records * record, rows.len(), "bytes of whole records");
        assert!(records * length * width < 1 << 31, "Arrow counts the elements of a list in 31 bits");
        let offsets = |lists: usize, size: usize| -> Vec<u8> {
            (0..=lists).flat_map(|list| ((list * size) as i32).to_le_bytes()).collect()
        };
        let (outer, inner) = (offsets(records, length), offsets(records * length, width));
        let mut nodes = vec![records, records * length, records * length * width];
        // Of each column: which values are missing, which none is; offsets; numbers.
        let mut buffers: Vec<&[u8]> = vec![&[], &outer, &[], &inner, &[], rows];
        let token_bytes: Vec<u8>;
        if self.columns.tokens.is_some() {
            assert_eq!(tokens.len(), records * length, "a token for each row");
            token_bytes = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            nodes.extend([records, records * length]);
            buffers.extend([&[][..], &[], &token_bytes]);
        }
        let mut places = Vec::new();
        let mut end = 0_usize;
        for buffer in &buffers {
            places.push((end as i64, buffer.len() as i64));
            end = (end + buffer.len()).next_multiple_of(ALIGNMENT);
        }
        self.message(&batch_message(records, &nodes, &places, end))?;
        for buffer in buffers {
            self.out.write_all(buffer)?;
            let padding = buffer.len().next_multiple_of(ALIGNMENT) - buffer.len();
            self.out.write_all(&[0; ALIGNMENT][..padding])?;
        }
        Ok(())
    }

    /// Writes the mark of the end, and returns the output.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> Result<W> {
        self.out.write_all(&[u32::MAX.to_le_bytes(), [0; 4]].concat())?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// Writes a message's header, after which its body begins at a multiple of eight bytes.
    fn message(&mut self, header: &[u8]) -> Result<()> {
        let length = (header.len() + 8).next_multiple_of(ALIGNMENT) - 8;
        self.out.write_all(&u32::MAX.to_le_bytes())?;
        self.out.write_all(&(length as u32).to_le_bytes())?;
        self.out.write_all(header)?;
        self.out.write_all(&vec![0; length - header.len()])
    }
}

fn finish(mut builder: Builder<'_>, kind: u8, header: Done, body: usize) -> Vec<u8> {
    let start = builder.start_table();
    builder.push_slot_always(slot(message::BODY_LENGTH), body as i64);
    builder.push_slot_always(slot(message::HEADER), header);
    builder.push_slot_always(slot(message::VERSION), format::VERSION);
    builder.push_slot_always(slot(message::HEADER_TYPE), kind);
    let root = builder.end_table(start);
    builder.finish(root, None);
    builder.finished_data().to_vec()
}

fn schema_message(columns: &Columns<'_>) -> Vec<u8> {
    let mut builder = Builder::new();
    let number = number_column(&mut builder, columns.numbers);
    let row = list_column(&mut builder, "item", None, number, &[]);
    let mut fields = vec![list_column(&mut builder, columns.rows, None, row, columns.rows_metadata)];
    if let Some(name) = columns.tokens {
        let token = token_column(&mut builder);
        fields.push(list_column(&mut builder, name, Some(columns.length), token, &[]));
    }
    let fields = builder.create_vector(&fields);
    let metadata = notes(&mut builder, columns.metadata);
    let start = builder.start_table();
    builder.push_slot_always(slot(schema::FIELDS), fields);
    builder.push_slot_always(slot(schema::METADATA), metadata);
    let schema = builder.end_table(start);
    finish(builder, format::SCHEMA, schema, 0)
}

fn batch_message(records: usize, nodes: &[usize], buffers: &[(i64, i64)], body: usize) -> Vec<u8> {
    let mut builder = Builder::new();
    let nodes: Vec<(i64, i64)> = nodes.iter().map(|&length| (length as i64, 0)).collect();
    let nodes = pairs(&mut builder, &nodes);
    let buffers = pairs(&mut builder, buffers);
    let start = builder.start_table();
    builder.push_slot_always(slot(record_batch::LENGTH), records as i64);
    builder.push_slot_always(slot(record_batch::NODES), nodes);
    builder.push_slot_always(slot(record_batch::BUFFERS), buffers);
    let batch = builder.end_table(start);
    finish(builder, format::RECORD_BATCH, batch, body)
}

/// A vector of structures of two numbers.
fn pairs<'b>(builder: &mut Builder<'b>, pairs: &[(i64, i64)]) -> WIPOffset<flatbuffers::Vector<'b, i64>> {
    // It is their numbers, the last first, and how many structures there are.
    builder.start_vector::<i64>(2 * pairs.len());
    for (first, second) in pairs.iter().rev() {
        builder.push(*second);
        builder.push(*first);
    }
    builder.end_vector::<i64>(pairs.len())
}

/// A column: its type, the table of the type's own fields, and the column below it.
fn column(
    builder: &mut Builder<'_>,
    name: &str,
    kind: u8,
    own: Done,
    child: Option<Done>,
    metadata: &[(&str, &str)],
) -> Done {
    let name = builder.create_string(name);
    let children: Vec<Done> = child.into_iter().collect();
    let children = builder.create_vector(&children);
    let metadata = (!metadata.is_empty()).then(|| notes(builder, metadata));
    let start = builder.start_table();
    builder.push_slot_always(slot(field::NAME), name);
    builder.push_slot_always(slot(field::TYPE), own);
    builder.push_slot_always(slot(field::CHILDREN), children);
    if let Some(metadata) = metadata {
        builder.push_slot_always(slot(field::METADATA), metadata);
    }
    builder.push_slot_always(slot(field::NULLABLE), true);
    builder.push_slot_always(slot(field::TYPE_TYPE), kind);
    builder.end_table(start)
}

fn list_column(
    builder: &mut Builder<'_>,
    name: &str,
    size: Option<usize>,
    child: Done,
    metadata: &[(&str, &str)],
) -> Done {
    let start = builder.start_table();
    if let Some(size) = size {
        builder.push_slot_always(slot(of_type::LIST_SIZE), size as i32);
    }
    let own = builder.end_table(start);
    let kind = if size.is_some() { kind::FIXED_SIZE_LIST } else { kind::LIST };
    column(builder, name, kind, own, Some(child), metadata)
}

fn number_column(builder: &mut Builder<'_>, numbers: NumberType) -> Done {
    let precision = match numbers {
        NumberType::Half => format::HALF,
        NumberType::Single => format::SINGLE,
    };
    let start = builder.start_table();
    builder.push_slot_always(slot(of_type::PRECISION), precision);
    let own = builder.end_table(start);
    column(builder, "item", kind::FLOATING_POINT, own, None, &[])
}

fn token_column(builder: &mut Builder<'_>) -> Done {
    let start = builder.start_table();
    builder.push_slot_always(slot(of_type::INT_BITS), 32_i32);
    builder.push_slot_always(slot(of_type::INT_SIGNED), true);
    let own = builder.end_table(start);
    column(builder, "item", kind::INT, own, None, &[])
}

/// A vector of tables of a key and a text.
fn notes<'b>(
    builder: &mut Builder<'b>,
    notes: &[(&str, &str)],
) -> WIPOffset<flatbuffers::Vector<'b, flatbuffers::ForwardsUOffset<TableFinishedWIPOffset>>> {
    let mut tables = Vec::new();
    for (key, text) in notes {
        let (key, text) = (builder.create_string(key), builder.create_string(text));
        let start = builder.start_table();
        builder.push_slot_always(slot(0), key);
        builder.push_slot_always(slot(1), text);
        tables.push(builder.end_table(start));
    }
    builder.create_vector(&tables)
}
