//! Reads the contexts of a source: their tokens, and their rows as float32.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use ndarray::{Array2, ArrayView1, ArrayView2, s};
use terminal::foreign_path;

use super::element::TokenElement;
use super::source::{self, Division, Run, Source};

/// Numbers that are read at once, about.
const AT_ONCE: u64 = 1 << 22;

/// The contexts that a store of the source has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// T, positions of a context.
    pub(super) length: usize,
    pub(super) contexts: u64,
    pub(super) rows: u64,
}

impl Shape {
    /// The contexts of `source`; `asked` for T, where rows have no contexts of their own.
    pub(super) fn of(source: &Source, asked: Option<usize>) -> Result<Shape> {
        let rows = source.rows();
        ensure!(rows > 0, "there is no row to import");
        let length = match source.division {
            Division::Runs => source.runs.iter().map(|run| run.count).max().unwrap_or(1),
            Division::Whole(length) => length as u64,
            Division::Rows => asked.unwrap_or(128) as u64,
        };
        let length = usize::try_from(length).ok().filter(|length| (1..=1 << 24).contains(length));
        let length = length.context("contexts have 1 to 16,777,216 positions")?;
        if let Some(asked) = asked.filter(|_| source.division != Division::Rows) {
            ensure!(
                asked == length,
                "--context {asked}: the source has contexts of {length} rows of its own"
            );
        }
        let contexts = match source.division {
            Division::Runs => source.runs.len() as u64,
            _ => rows.div_ceil(length as u64),
        };
        Ok(Shape { length, contexts, rows })
    }

    /// Whether some contexts are shorter than T.
    pub(super) fn is_padded(&self) -> bool {
        self.rows < self.contexts * self.length as u64
    }
}

/// Whole contexts of a source.
#[derive(Debug)]
pub(super) struct Contexts {
    /// Number of the first.
    pub(super) first: u64,
    /// `[n, T]`, padded where a context is shorter.
    pub(super) tokens: Array2<u32>,
    /// Rows of all of them, one after the other, `[rows, d]`.
    rows: Array2<f32>,
    /// Rows of each.
    counts: Vec<usize>,
}

impl Contexts {
    /// The tokens `[T]` and the rows `[at most T, d]` of each context.
    pub(super) fn each(&self) -> impl Iterator<Item = (ArrayView1<'_, u32>, ArrayView2<'_, f32>)> {
        let mut start = 0;
        self.tokens.outer_iter().zip(&self.counts).map(move |(tokens, &count)| {
            let rows = self.rows.slice(s![start..start + count, ..]);
            start += count;
            (tokens, rows)
        })
    }
}

/// Reads contexts of a source in any order.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    source: &'a Source,
    shape: Shape,
    /// The token of positions without a row; that of the others, where the source has none, is 0.
    padding: u32,
    /// The first row of each run, and the number of all rows.
    starts: Vec<u64>,
    /// The same of tokens that lie in one run.
    single: [u64; 2],
    open: Option<(usize, File)>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a Source, shape: Shape, padding: u32) -> Reader<'a> {
        let mut starts = vec![0];
        let mut rows = 0;
        for run in &source.runs {
            rows += run.count;
            starts.push(rows);
        }
        Reader { source, shape, padding, starts, single: [0, rows], open: None }
    }

    /// Contexts that are read at once.
    pub(super) fn at_once(&self) -> u64 {
        let rows = self.shape.rows.div_ceil(self.shape.contexts);
        // Of many short contexts and a long one, the tokens take more room than the rows.
        (AT_ONCE / (rows * self.source.width as u64).max(self.shape.length as u64)).clamp(1, 1 << 16)
    }

    /// The rows of context `context`: the first, and how many.
    fn rows_of(&self, context: u64) -> (u64, u64) {
        match self.source.division {
            Division::Runs => {
                let start = self.starts[context as usize];
                (start, self.starts[context as usize + 1] - start)
            }
            _ => {
                let start = context * self.shape.length as u64;
                (start, (self.shape.rows - start).min(self.shape.length as u64))
            }
        }
    }

    /// Contexts `first` and following, `count` of them, or fewer at the end.
    ///
    /// # Errors
    /// Files that have become shorter, numbers that are no tokens, and the system's.
    pub(super) fn read(&mut self, first: u64, count: u64) -> Result<Contexts> {
        let count = count.min(self.shape.contexts - first);
        let counts = self.counts(first, count);
        let mut rows = Array2::zeros((counts.iter().sum(), self.source.width));
        self.read_rows(
            self.rows_of(first).0,
            rows.as_slice_mut().expect("a new array is in row-major order"),
        )?;
        Ok(Contexts { first, tokens: self.padded_tokens(first, &counts)?, rows, counts })
    }

    /// The tokens of contexts `first` and following, `[n, T]` with n at most `count`.
    ///
    /// # Errors
    /// As of [`Reader::read`].
    pub(super) fn read_tokens_of(&mut self, first: u64, count: u64) -> Result<Array2<u32>> {
        let count = count.min((AT_ONCE / self.shape.length as u64).max(1));
        let counts = self.counts(first, count);
        self.padded_tokens(first, &counts)
    }

    /// Rows before context `context`.
    pub(super) fn rows_before(&self, context: u64) -> u64 {
        if context < self.shape.contexts { self.rows_of(context).0 } else { self.shape.rows }
    }

    fn counts(&self, first: u64, count: u64) -> Vec<usize> {
        (first..first + count).map(|context| self.rows_of(context).1 as usize).collect()
    }

    /// The tokens of contexts that have `counts` rows, filled up to T.
    fn padded_tokens(&mut self, first: u64, counts: &[usize]) -> Result<Array2<u32>> {
        let tokens = self.read_tokens(self.rows_of(first).0, counts.iter().sum::<usize>() as u64)?;
        let mut padded = Array2::from_elem((counts.len(), self.shape.length), self.padding);
        let mut rest = &tokens[..];
        for (mut context, &count) in padded.outer_iter_mut().zip(counts) {
            let (own, after) = rest.split_at(count);
            context.slice_mut(s![..count]).assign(&ArrayView1::from(own));
            rest = after;
        }
        Ok(padded)
    }

    /// The file and the number in it of row `row` of context `context`, for a person.
    pub(super) fn place(&self, context: u64, row: u64) -> String {
        let number = self.rows_of(context).0 + row;
        let run = self.starts.partition_point(|&start| start <= number) - 1;
        let path = &self.source.files[self.source.runs[run].file];
        let before: u64 = self.source.runs[..run]
            .iter()
            .rev()
            .take_while(|other| other.file == self.source.runs[run].file)
            .map(|run| run.count)
            .sum();
        format!("row {} of {}", before + number - self.starts[run], foreign_path(path))
    }

    /// Fills `out` with the rows from number `start` on.
    fn read_rows(&mut self, start: u64, mut out: &mut [f32]) -> Result<()> {
        let (width, stride, row_bytes) = (self.source.width, self.source.stride, self.source.row_bytes());
        let mut bytes = Vec::new();
        for piece in pieces(&self.source.runs, &self.starts, start, out.len() as u64 / width as u64, stride) {
            let (part, rest) = out.split_at_mut(piece.count as usize * width);
            out = rest;
            if stride == row_bytes {
                bytes.resize((piece.count * row_bytes) as usize, 0);
                self.read_exact(piece.file, piece.offset, &mut bytes)?;
                self.source.element.widen(&bytes, part);
            } else {
                bytes.resize(row_bytes as usize, 0);
                for (row, out) in part.chunks_exact_mut(width).enumerate() {
                    self.read_exact(piece.file, piece.offset + row as u64 * stride, &mut bytes)?;
                    self.source.element.widen(&bytes, out);
                }
            }
        }
        Ok(())
    }

    /// The tokens of `count` rows from number `start` on.
    fn read_tokens(&mut self, start: u64, count: u64) -> Result<Vec<u32>> {
        let source = self.source;
        let Some(tokens) = &source.tokens else { return Ok(vec![0; count as usize]) };
        let size = tokens.element.bytes();
        // The tokens' runs are either those of the rows or a single one.
        let starts = if tokens.runs.len() == source.runs.len() { &self.starts[..] } else { &self.single[..] };
        let mut read = Vec::with_capacity(count as usize);
        for piece in pieces(&tokens.runs, starts, start, count, size) {
            read.extend(self.read_token_run(piece, tokens.element)?);
        }
        Ok(read)
    }

    fn read_token_run(&mut self, run: Run, element: TokenElement) -> Result<Vec<u32>> {
        let mut bytes = vec![0; (run.count * element.bytes()) as usize];
        self.read_exact(run.file, run.offset, &mut bytes)?;
        element
            .read(&bytes)
            .with_context(|| format!("the tokens in {}", foreign_path(&self.source.files[run.file])))
    }

    /// The largest token of the source, if it has tokens. Reads all of them.
    pub(super) fn largest_token(&mut self) -> Result<Option<u32>> {
        let source = self.source;
        let Some(tokens) = &source.tokens else { return Ok(None) };
        let mut largest = 0;
        for run in &tokens.runs {
            for start in (0..run.count).step_by(1 << 20) {
                let offset = run.offset + start * tokens.element.bytes();
                let piece = Run { offset, count: (run.count - start).min(1 << 20), ..*run };
                largest =
                    largest.max(self.read_token_run(piece, tokens.element)?.into_iter().max().unwrap_or(0));
            }
        }
        Ok(Some(largest))
    }

    fn read_exact(&mut self, file: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let path = &self.source.files[file];
        let open = match self.open.take() {
            Some((number, open)) if number == file => open,
            _ => source::open(path)?,
        };
        let read = open.read_exact_at(bytes, offset);
        self.open = Some((file, open));
        read.with_context(|| {
            format!("cannot read {}: it has changed since its header was read", foreign_path(path))
        })
    }
}

/// Where `count` elements from number `start` on lie: parts of the runs, the first elements of which have the numbers `starts`.
fn pieces<'a>(
    runs: &'a [Run],
    starts: &[u64],
    start: u64,
    count: u64,
    stride: u64,
) -> impl Iterator<Item = Run> + use<'a> {
    let mut run = starts.partition_point(|&first| first <= start).saturating_sub(1);
    let mut skip = start - starts.get(run).copied().unwrap_or(0);
    let mut left = count;
    std::iter::from_fn(move || {
        while left > 0 {
            let whole = runs.get(run)?;
            run += 1;
            let taken = (whole.count - skip.min(whole.count)).min(left);
            let offset = whole.offset + skip * stride;
            skip = skip.saturating_sub(whole.count);
            if taken > 0 {
                left -= taken;
                skip = 0;
                return Some(Run { file: whole.file, offset, count: taken });
            }
        }
        None
    })
}
