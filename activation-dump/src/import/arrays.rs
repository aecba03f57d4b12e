//! NumPy files: `[n, d]`, or `[contexts, positions, d]`, of one file or of several that are read as one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use terminal::foreign_path;

use super::element::{Element, TokenElement};
use super::source::{self, Division, Origin, Run, Source, Tokens};
use crate::npy::{self, Header};

/// The arrays `files`, in this order.
pub(super) fn open(files: Vec<PathBuf>) -> Result<Source> {
    let mut runs = Vec::new();
    // The first file's element, width and context; the others must agree.
    let mut common: Option<(Element, usize, Division)> = None;
    for (index, path) in files.iter().enumerate() {
        let in_file = || format!("{}", foreign_path(path));
        let (header, offset, bytes) = header(path)?;
        let element = element(&header).with_context(in_file)?;
        let (rows, division, width) = match header.shape[..] {
            [rows, width] => (rows, Division::Rows, width),
            [contexts, positions, width] if positions > 0 => {
                let length = usize::try_from(positions).unwrap_or(usize::MAX);
                (
                    source::product(&[contexts, positions]).with_context(in_file)?,
                    Division::Whole(length),
                    width,
                )
            }
            _ => bail!(
                "{} has the shape {:?}; [n, d] or [contexts, positions, d] is needed",
                in_file(),
                header.shape
            ),
        };
        let width = source::width(width).with_context(in_file)?;
        check_size(
            path,
            source::product(&[rows, width as u64, element.bytes()]).with_context(in_file)?,
            bytes.saturating_sub(offset),
        )?;
        let this = (element, width, division);
        match common {
            None => common = Some(this),
            Some(first) => ensure!(
                first == this,
                "{} has rows of {width} {} numbers {}, {} has rows of {} {} numbers {}; files that are read as one agree",
                foreign_path(path),
                element.name(),
                named(division),
                foreign_path(&files[0]),
                first.1,
                first.0.name(),
                named(first.2)
            ),
        }
        runs.push(Run { file: index, offset, count: rows });
    }
    let (element, width, division) = common.context("there is no .npy file to import")?;
    let stride = width as u64 * element.bytes();
    Ok(Source { files, element, width, stride, runs, tokens: None, division, origin: Origin::default() })
}

fn named(division: Division) -> String {
    match division {
        Division::Whole(length) => format!("in contexts of {length}"),
        Division::Rows | Division::Runs => "without contexts".to_owned(),
    }
}

/// The tokens in the array `path`, of any shape, as those of the rows of `source`.
pub(super) fn tokens(path: &Path, source: &mut Source) -> Result<()> {
    let (header, offset, bytes) = header(path)?;
    let element = match header.kind.as_str() {
        "<u2" => TokenElement::U16,
        "<u4" => TokenElement::U32,
        "<i4" => TokenElement::I32,
        "<i8" => TokenElement::I64,
        other => bail!("{} has numbers of the type {other}; tokens are u2, u4, i4 or i8", foreign_path(path)),
    };
    let count = source::product(&header.shape).with_context(|| foreign_path(path).to_string())?;
    check_size(path, source::product(&[count, element.bytes()])?, bytes.saturating_sub(offset))?;
    ensure!(
        count == source.rows(),
        "{} has {count} tokens, and the activations have {} rows; there is one token for each row",
        foreign_path(path),
        source.rows()
    );
    source.files.push(path.to_path_buf());
    let run = Run { file: source.files.len() - 1, offset, count };
    source.tokens = Some(Tokens { element, runs: vec![run] });
    Ok(())
}

/// A file's header, where its numbers begin, and its size.
fn header(path: &Path) -> Result<(Header, u64, u64)> {
    let mut file = source::open(path)?;
    let bytes = source::size(path, &file)?;
    let header = npy::header(&mut file).with_context(|| format!("cannot import {}", foreign_path(path)))?;
    ensure!(
        !header.fortran_order || header.shape.len() < 2,
        "{} is in Fortran order; numpy.ascontiguousarray brings rows together",
        foreign_path(path)
    );
    let offset = std::io::Seek::stream_position(&mut file)?;
    Ok((header, offset, bytes))
}

fn element(header: &Header) -> Result<Element> {
    match header.kind.as_str() {
        "<f2" => Ok(Element::F16),
        "<f4" => Ok(Element::F32),
        // How the bfloat16 of ml_dtypes, which NumPy does not know, is saved.
        "<V2" | "|V2" => Ok(Element::BF16),
        other => bail!(
            "its numbers are of the type {other}; <f2, <f4 and ml_dtypes' bfloat16 can be imported, and .astype('float32') \
             makes the second"
        ),
    }
}

/// Refuses a file that does not have as many bytes of numbers as its header calls for.
fn check_size(path: &Path, needed: u64, there: u64) -> Result<()> {
    ensure!(
        needed == there,
        "{} is damaged: its header calls for {needed} bytes of numbers, and it has {there}",
        foreign_path(path)
    );
    Ok(())
}
