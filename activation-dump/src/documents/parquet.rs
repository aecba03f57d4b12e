//! Parquet: the strings of one column, one row group at a time.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::document::{Content, Damage, DamageKind, Document, Documents, LONGEST, Place, is_system_error};

/// Rows decoded at once.
const RECORDS: usize = 256;

/// One document per row, with one column's pages in memory at a time. A damaged page cannot be skipped: the
/// rest of its row group is lost, and reading continues with the next row group.
pub(super) fn documents(file: File, name: Arc<str>, column: &str) -> Result<Documents> {
    let reader = match without_panics(|| SerializedFileReader::new(file)) {
        Ok(reader) => reader,
        Err(error) => {
            let document = unreadable(Place::whole(&name), DamageKind::UnreadableFile, error, 1);
            return Ok(Box::new(std::iter::once(document)));
        }
    };
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let Some(index) = schema.columns().iter().position(|c| c.path().string() == column) else {
        let names: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
        bail!("no column `{column}` (it has {names:?}); name the column of the text with --column")
    };
    let description = schema.column(index);
    if description.physical_type() != PhysicalType::BYTE_ARRAY || description.max_rep_level() != 0 {
        bail!("column `{column}` is not a column of strings; name the column of the text with --column");
    }
    let rows = Rows { reader, index, nullable: description.max_def_level() > 0, group: 0, open: None };
    Ok(Box::new(rows.documents(name)))
}

/// What `read` gives. The library panics at some files that it should refuse: that is damage of the file like any other.
fn without_panics<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    let died = |died: workers::Died| ParquetError::General(died.reason);
    workers::catch("the reader of Parquet files", read).map_err(died).flatten()
}

/// The rows of a file, as they come.
struct Rows {
    reader: SerializedFileReader<File>,
    /// Index of the column.
    index: usize,
    nullable: bool,
    /// Row groups begun.
    group: usize,
    open: Option<ColumnReaderImpl<ByteArrayType>>,
}

impl Rows {
    fn documents(mut self, name: Arc<str>) -> impl Iterator<Item = Result<Document>> + Send {
        let mut ready = VecDeque::new();
        let (mut row, mut group_end) = (0_u64, 0_u64);
        std::iter::from_fn(move || {
            loop {
                if let Some(bytes) = ready.pop_front() {
                    let place = Place::of(&name, "row", row);
                    row += 1;
                    return Some(Ok(document(place, bytes)));
                }
                match without_panics(|| self.next_values()) {
                    Ok(Some(values)) if !values.is_empty() => ready.extend(values),
                    outcome => {
                        // Rows that the group promised but did not deliver are lost, with or without an error.
                        let lost = group_end.saturating_sub(row);
                        let place = Place::of(&name, "row", row);
                        row = group_end;
                        self.open = None;
                        let ended = match outcome {
                            Ok(_) if lost > 0 => Some("the row group has fewer rows than it says".to_owned()),
                            Ok(_) => None,
                            Err(error) => Some(format!("{error}, in row group {}", self.group - 1)),
                        };
                        if lost > 0
                            && let Some(what) = ended
                        {
                            let error = ParquetError::General(what);
                            return Some(unreadable(place, DamageKind::UnreadableRows, error, lost));
                        }
                        if self.group == self.reader.num_row_groups() {
                            return None;
                        }
                        group_end += self.reader.metadata().row_group(self.group).num_rows().max(0) as u64;
                        self.group += 1;
                    }
                }
            }
        })
    }

    /// The next values of the row group that was begun last; `None` where it ends.
    fn next_values(&mut self) -> Result<Option<Vec<Option<ByteArray>>>, ParquetError> {
        if self.group == 0 {
            return Ok(None);
        }
        if self.open.is_none() {
            let column = self.reader.get_row_group(self.group - 1)?.get_column_reader(self.index)?;
            let ColumnReader::ByteArrayColumnReader(column) = column else { return Ok(None) };
            self.open = Some(column);
        }
        let Some(column) = self.open.as_mut() else { return Ok(None) };
        let (mut definitions, mut values) = (Vec::new(), Vec::new());
        let levels = self.nullable.then_some(&mut definitions);
        let (records, _, _) = column.read_records(RECORDS, levels, None, &mut values)?;
        let mut values = values.into_iter();
        let mut rows = Vec::with_capacity(records);
        for record in 0..records {
            let null = self.nullable && definitions.get(record).copied() == Some(0);
            rows.push(match null {
                true => None,
                false => {
                    let value = values.next();
                    let short = || ParquetError::General("a page has fewer values than rows".to_owned());
                    Some(value.ok_or_else(short)?)
                }
            });
        }
        Ok(Some(rows))
    }
}

/// A null is an empty document. Values of a column can share their bytes; a document has its own, from when it is read on.
fn document(place: Place, bytes: Option<ByteArray>) -> Document {
    let bytes = bytes.as_ref().map_or(&[][..], ByteArray::data);
    if bytes.len() > LONGEST {
        let what = format!("it has {} bytes; up to {LONGEST} are read", bytes.len());
        return Document::damaged(place, DamageKind::TooLong, what);
    }
    match String::from_utf8(bytes.to_vec()) {
        Ok(text) => Document::text(place, text),
        Err(error) => Document::damaged(place, DamageKind::InvalidUtf8, error.utf8_error()),
    }
}

/// What an error of the library means: the system's errors are passed on, the data's are damage.
fn unreadable(place: Place, kind: DamageKind, error: ParquetError, documents: u64) -> Result<Document> {
    if let ParquetError::External(cause) = &error
        && let Some(cause) = cause.downcast_ref::<std::io::Error>()
        && is_system_error(cause)
    {
        return Err(error).with_context(|| format!("reading {place}"));
    }
    let damage = Damage { kind, what: error.to_string(), documents };
    Ok(Document { place, content: Content::Damaged(damage) })
}
