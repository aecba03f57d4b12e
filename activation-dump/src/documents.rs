//! Files of text, read one document at a time.
//!
//! | file | a document is |
//! |---|---|
//! | `.txt` | the whole file |
//! | `.jsonl`, `.ndjson` | the string in the text column of one line |
//! | `.parquet` | the string in the text column of one row |
//!
//! `.txt`, `.jsonl` and `.ndjson` may be compressed with gzip (`.gz`) or Zstandard (`.zst`).

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::ByteArrayType;
use parquet::file::reader::{FileReader, SerializedFileReader};

/// The documents of one file, in its order.
pub(crate) type Documents = Box<dyn Iterator<Item = Result<String>> + Send>;

/// The formats this module reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    JsonLines,
    Parquet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Whether the file's name ends like one of the formats above.
pub(crate) fn is_readable(path: &Path) -> bool {
    format_of(path).is_some()
}

/// Opens a file of documents; `column` is the name of the text in JSON lines and parquet.
pub(crate) fn open(path: &Path, column: &str) -> Result<Documents> {
    let named = || format!("reading {}", path.display());
    let Some((format, compression)) = format_of(path) else {
        bail!(
            "{} is of no known format; files of text end in .txt, .jsonl, .ndjson (also with .gz or .zst) or .parquet",
            path.display()
        )
    };
    let file = File::open(path).with_context(named)?;
    if format == Format::Parquet {
        return parquet_documents(file, path, column).with_context(named);
    }
    let plain: Box<dyn Read + Send> = match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::Decoder::new(file).with_context(named)?),
    };
    let reader = BufReader::with_capacity(1 << 20, plain);
    Ok(match format {
        Format::Text => whole_text(reader, path),
        _ => json_lines(reader, path, column),
    })
}

fn format_of(path: &Path) -> Option<(Format, Compression)> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let (name, compression) = if let Some(inner) = name.strip_suffix(".gz") {
        (inner, Compression::Gzip)
    } else if let Some(inner) = name.strip_suffix(".zst") {
        (inner, Compression::Zstd)
    } else {
        (name.as_str(), Compression::None)
    };
    let format = match name.rsplit_once('.')?.1 {
        "txt" => Format::Text,
        "jsonl" | "ndjson" => Format::JsonLines,
        "parquet" if compression == Compression::None => Format::Parquet,
        _ => return None,
    };
    Some((format, compression))
}

/// One document: everything there is.
fn whole_text(mut reader: impl Read + Send + 'static, path: &Path) -> Documents {
    let path = path.to_owned();
    Box::new(std::iter::once_with(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).with_context(|| format!("reading {}", path.display()))?;
        Ok(text)
    }))
}

/// One document a line; blank lines are passed over.
fn json_lines(reader: impl BufRead + Send + 'static, path: &Path, column: &str) -> Documents {
    let (path, column) = (path.to_owned(), column.to_owned());
    Box::new(reader.lines().enumerate().filter_map(move |(number, line)| {
        let place = || format!("{} line {}", path.display(), number + 1);
        match line {
            Ok(line) if line.trim().is_empty() => None,
            Ok(line) => Some(text_of_line(&line, &column).with_context(place)),
            Err(error) => Some(Err(error).with_context(place)),
        }
    }))
}

fn text_of_line(line: &str, column: &str) -> Result<String> {
    let mut record: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line)?;
    match record.remove(column) {
        Some(serde_json::Value::String(text)) => Ok(text),
        Some(_) => bail!("`{column}` is not a string"),
        None => {
            let names: Vec<&String> = record.keys().collect();
            bail!("no field `{column}` (it has {names:?}); name the text with --column")
        }
    }
}

/// One document a row, read with one column's pages in memory at a time.
fn parquet_documents(file: File, path: &Path, column: &str) -> Result<Documents> {
    let reader = SerializedFileReader::new(file)?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let names: Vec<&str> = schema.columns().iter().map(|c| c.name()).collect();
    let Some(index) = schema.columns().iter().position(|c| c.path().string() == column) else {
        bail!("no column `{column}` (it has {names:?}); name the text with --column")
    };
    let description = schema.column(index);
    if description.physical_type() != PhysicalType::BYTE_ARRAY || description.max_rep_level() != 0 {
        bail!("column `{column}` is not a column of strings");
    }
    let nullable = description.max_def_level() > 0;
    let (path, groups) = (path.to_owned(), reader.num_row_groups());
    let mut group = 0;
    let mut open: Option<ColumnReaderImpl<ByteArrayType>> = None;
    let mut ready = std::collections::VecDeque::new();
    let mut failed = false;
    Ok(Box::new(std::iter::from_fn(move || {
        while ready.is_empty() && !failed {
            let step = (|| -> Result<bool> {
                if let Some(column) = open.as_mut() {
                    ready.extend(next_strings(column, nullable)?);
                    if ready.is_empty() {
                        open = None;
                    }
                    return Ok(true);
                }
                if group == groups {
                    return Ok(false);
                }
                if let ColumnReader::ByteArrayColumnReader(column) =
                    reader.get_row_group(group)?.get_column_reader(index)?
                {
                    open = Some(column);
                }
                group += 1;
                Ok(true)
            })();
            match step {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    // A damaged page cannot be stepped over: what follows it in the file is lost with it.
                    failed = true;
                    let place = format!("reading {}, row group {}", path.display(), group.saturating_sub(1));
                    return Some(Err(error.context(place)));
                }
            }
        }
        ready.pop_front().map(Ok)
    })))
}

/// Up to 256 strings; none at the end of the row group. A null is an empty document.
fn next_strings(column: &mut ColumnReaderImpl<ByteArrayType>, nullable: bool) -> Result<Vec<String>> {
    const RECORDS: usize = 256;
    let (mut definitions, mut values) = (Vec::new(), Vec::new());
    let (records, _, _) =
        column.read_records(RECORDS, nullable.then_some(&mut definitions), None, &mut values)?;
    let mut values = values.into_iter();
    (0..records)
        .map(|i| {
            if nullable && definitions[i] == 0 {
                return Ok(String::new());
            }
            let bytes = values.next().context("fewer values than rows")?;
            String::from_utf8(bytes.data().to_vec()).context("a text is not UTF-8")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(name: &str, bytes: &[u8]) -> Result<Vec<String>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join(name);
        std::fs::write(&path, bytes)?;
        open(&path, "text")?.collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn each_line_of_json_is_a_document_in_all_compressions() {
        let plain = b"{\"text\": \"one\", \"id\": 1}\n\n{\"text\": \"zwei \\u00fc\"}\n";
        let expected = ["one", "zwei ü"];
        assert_eq!(read("a.jsonl", plain).unwrap(), expected);
        assert_eq!(read("a.jsonl.gz", &gzip(plain)).unwrap(), expected);
        assert_eq!(read("a.jsonl.zst", &zstd::encode_all(&plain[..], 1).unwrap()).unwrap(), expected);
    }

    #[test]
    fn a_text_file_is_one_document() {
        assert_eq!(read("a.txt", b"one\n\ntwo\n").unwrap(), ["one\n\ntwo\n"]);
    }

    #[test]
    fn the_shipped_parquet_file_reads_whole() {
        let path =
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/public-domain-english.parquet"));
        let texts: Vec<String> = open(path, "text").unwrap().collect::<Result<_>>().unwrap();
        assert_eq!(texts.len(), 2342);
        assert_eq!(texts.iter().map(String::len).sum::<usize>(), 7_698_245);
    }

    #[test]
    fn a_wrong_column_is_named_with_those_there_are() {
        let error = format!("{:#}", read("a.jsonl", b"{\"content\": \"x\"}\n").unwrap_err());
        assert!(
            error.contains("line 1") && error.contains("content") && error.contains("--column"),
            "{error}"
        );
        let path =
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/public-domain-english.parquet"));
        let error = format!("{:#}", open(path, "body").err().unwrap());
        assert!(error.contains("source") && error.contains("--column"), "{error}");
    }

    #[test]
    fn damaged_files_are_errors_that_name_the_place() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/public-domain-english.parquet");
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 64].fill(0xAA);
        let error = read("damaged.parquet", &bytes).map(|texts| texts.len()).unwrap_err();
        assert!(format!("{error:#}").contains("row group"), "{error:#}");

        assert!(
            format!("{:#}", read("short.parquet", &bytes[..1000]).unwrap_err()).contains("short.parquet")
        );
        let error = read("a.jsonl", b"{\"text\": \"fine\"}\n{\"text\": \n").unwrap_err();
        assert!(format!("{error:#}").contains("line 2"), "{error:#}");
        assert!(format!("{:#}", read("a.csv", b"x").unwrap_err()).contains(".parquet"));
    }
}
