//! Writes a state dict as `torch.save` does.

use std::io::{Cursor, Write};

use ndarray::ArrayViewD;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// What an entry of the state dict holds.
#[derive(Debug)]
pub(crate) enum Content<'a> {
    /// float32.
    Floats(ArrayViewD<'a, f32>),
    /// int32 without dimensions.
    Integer(i32),
    /// int64 [n].
    Longs(Vec<i64>),
}

impl Content<'_> {
    fn storage(&self) -> &'static str {
        match self {
            Content::Floats(_) => "FloatStorage",
            Content::Integer(_) => "IntStorage",
            Content::Longs(_) => "LongStorage",
        }
    }

    fn shape(&self) -> Vec<usize> {
        match self {
            Content::Floats(tensor) => tensor.shape().to_vec(),
            Content::Integer(_) => Vec::new(),
            Content::Longs(numbers) => vec![numbers.len()],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Content::Floats(tensor) => tensor.iter().flat_map(|number| number.to_le_bytes()).collect(),
            Content::Integer(number) => number.to_le_bytes().to_vec(),
            Content::Longs(numbers) => numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        }
    }
}

/// The file that `torch.load(weights_only=True)` reads as a dictionary of these tensors.
pub(crate) fn write(tensors: &[(&str, Content<'_>)]) -> Vec<u8> {
    archive(tensors).expect("an archive in memory can be written")
}

fn archive(tensors: &[(&str, Content<'_>)]) -> zip::result::ZipResult<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    // torch maps storages into memory where they are aligned.
    let options =
        SimpleFileOptions::default().compression_method(CompressionMethod::Stored).with_alignment(64);
    let mut file = |name: &str, content: &[u8]| {
        zip.start_file(format!("ae/{name}"), options.large_file(content.len() > u32::MAX as usize))?;
        zip.write_all(content)?;
        zip::result::ZipResult::Ok(())
    };
    file("data.pkl", &pickle(tensors))?;
    file("byteorder", b"little")?;
    for (at, (_, content)) in tensors.iter().enumerate() {
        file(&format!("data/{at}"), &content.bytes())?;
    }
    file("version", b"3\n")?;
    Ok(zip.finish()?.into_inner())
}

/// Protocol 2, without a memo.
fn pickle(tensors: &[(&str, Content<'_>)]) -> Vec<u8> {
    let mut out = b"\x80\x02}(".to_vec();
    for (at, (name, content)) in tensors.iter().enumerate() {
        let shape = content.shape();
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{}\n", content.storage()).bytes());
        text(&mut out, &at.to_string());
        text(&mut out, "cpu");
        integer(&mut out, shape.iter().product());
        out.extend(b"tQ");
        integer(&mut out, 0);
        tuple(&mut out, &shape);
        tuple(&mut out, &row_major(&shape));
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    (1..=shape.len()).map(|at| shape[at..].iter().product()).collect()
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

/// LONG1, whose numbers are signed.
fn integer(out: &mut Vec<u8>, number: usize) {
    out.extend([0x8a, 8]);
    out.extend((number as u64).to_le_bytes());
}

fn tuple(out: &mut Vec<u8>, numbers: &[usize]) {
    out.push(b'(');
    numbers.iter().for_each(|number| integer(out, *number));
    out.push(b't');
}
