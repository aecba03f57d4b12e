use std::io::Write;

use super::*;

const PARQUET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/public-domain-english.parquet");

fn options() -> ReadOptions {
    ReadOptions { column: "text".to_owned(), format: None, vocabulary: 50_000, context: 4 }
}

fn read_all(name: &str, bytes: &[u8]) -> Result<Vec<Document>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(name);
    std::fs::write(&path, bytes)?;
    open(&path, &options())?.collect()
}

/// The texts, which must all be sound.
fn read(name: &str, bytes: &[u8]) -> Result<Vec<String>> {
    read_all(name, bytes)?.into_iter().map(|document| text(document.content)).collect()
}

fn text(content: Content) -> Result<String> {
    match content {
        Content::Text(text) => Ok(text),
        other => bail!("{other:?}"),
    }
}

/// Each document in a word, and where it stands in its file.
fn shapes(documents: Vec<Document>) -> Vec<String> {
    let shape = |document: Document| {
        let content = match document.content {
            Content::Text(text) => text,
            Content::Damaged(damage) => format!("<{} {}>", damage.documents, damage.kind.name()),
            other => format!("{other:?}"),
        };
        match document.place.inside {
            Some((unit, number)) => format!("{unit} {number}: {content}"),
            None => content,
        }
    };
    documents.into_iter().map(shape).collect()
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
    let marked = [lines::BYTE_ORDER_MARK, &plain[..]].concat();
    assert_eq!(read("a.jsonl", &marked).unwrap(), expected);
}

#[test]
fn a_text_file_is_one_document() {
    assert_eq!(read("a.txt", b"one\n\ntwo\n").unwrap(), ["one\n\ntwo\n"]);
}

#[test]
fn a_long_text_comes_in_parts_that_are_together_the_whole() {
    let parts = |bytes: &[u8], part: usize| -> Vec<Content> {
        let reader = std::io::Cursor::new(bytes.to_vec());
        lines::whole_text(reader, "text".into(), part).map(|document| document.unwrap().content).collect()
    };
    let long = "a é 中 👩 z";
    for part in 4..long.len() {
        let contents = parts(long.as_bytes(), part);
        let last = contents.len() - 1;
        let mut whole = String::new();
        for (index, content) in contents.into_iter().enumerate() {
            let Content::Part { text, begins, ends } = content else { panic!("{content:?}") };
            assert_eq!((begins, ends), (index == 0, index == last), "{part}");
            whole.push_str(&text);
        }
        assert_eq!(whole, long, "{part}");
    }
    assert_eq!(parts(long.as_bytes(), long.len()), [Content::Text(long.to_owned())]);
    assert_eq!(parts(b"", 4), [Content::Text(String::new())]);
    // Where it is no text any more, the document ends; where its first part is none, there is no document.
    let part = |text: &str, begins, ends| Content::Part { text: text.to_owned(), begins, ends };
    let cut_short = parts(b"abcdef\xffgh", 4);
    assert_eq!(cut_short[..2], [part("abcd", true, false), part("ef", false, true)]);
    assert!(matches!(&cut_short[2..], [Content::Damaged(Damage { kind: DamageKind::InvalidUtf8, .. })]));
    let cut_in_a_character = parts("abcd中".as_bytes().split_last().unwrap().1, 5);
    assert_eq!(cut_in_a_character[..2], [part("abcd", true, false), part("", false, true)]);
    assert!(matches!(parts(b"a\xffcdefgh", 4)[..], [Content::Damaged(_)]));
}

#[test]
fn a_stream_is_told_by_its_first_bytes_or_by_the_flag() {
    let json = b"\n {\"text\": \"one\"}\n{\"text\": \"two\"}\n";
    let read = |bytes: &[u8], format: Option<InputFormat>| {
        let input = std::io::Cursor::new(bytes.to_vec());
        let documents = open_stream(input, &ReadOptions { format, ..options() }).unwrap();
        shapes(documents.map(Result::unwrap).collect())
    };
    assert_eq!(read(json, None), ["line 2: one", "line 3: two"]);
    assert_eq!(read(&gzip(json), None), ["line 2: one", "line 3: two"]);
    assert_eq!(read(&zstd::encode_all(&json[..], 1).unwrap(), None), ["line 2: one", "line 3: two"]);
    assert_eq!(read(b"plain {text}", None), ["plain {text}"]);
    assert_eq!(read(b"{text}", Some(InputFormat::Text)), ["{text}"]);
    assert_eq!(
        read(b"\x07\x00\x08\x00", Some(InputFormat::U16)),
        ["token 0: Stream { tokens: [7, 8], begins: true }"]
    );
    assert_eq!(read(b"", None), [""]);
}

#[test]
fn the_shipped_parquet_file_reads_whole() {
    let texts: Vec<String> = open(Path::new(PARQUET), &options())
        .unwrap()
        .map(|document| text(document.unwrap().content).unwrap())
        .collect();
    assert_eq!(texts.len(), 2342);
    assert_eq!(texts.iter().map(String::len).sum::<usize>(), 7_698_245);
}

#[test]
fn a_wrong_column_is_an_error_that_names_those_there_are() {
    let error = format!("{:#}", read_all("a.jsonl", b"{\"content\": \"x\"}\n").unwrap_err());
    assert!(error.contains("line 1") && error.contains("content") && error.contains("--column"), "{error}");
    let other = ReadOptions { column: "body".to_owned(), ..options() };
    let error = format!("{:#}", open(Path::new(PARQUET), &other).err().unwrap());
    assert!(error.contains("source") && error.contains("--column"), "{error}");
    assert!(format!("{:#}", read_all("a.csv", b"x").unwrap_err()).contains(".parquet"));
}

#[test]
fn damaged_lines_are_told_by_kind_and_the_others_read() {
    let lines = b"{\"text\": \"fine\"}\n{\"text\": \n{\"text\": \"\xff\"}\n{\"body\": 1}\n[1]\n{\"text\": null}\n{\"text\": \"\\ud800\"}\n{\"text\": \"end\"}";
    let expected = [
        "line 1: fine",
        "line 2: <1 not JSON>",
        "line 3: <1 not UTF-8>",
        "line 4: <1 without text>",
        "line 5: <1 without text>",
        "line 6: ",
        "line 7: <1 not JSON>",
        "line 8: end",
    ];
    assert_eq!(shapes(read_all("a.jsonl", lines).unwrap()), expected);
    assert_eq!(shapes(read_all("a.txt", b"\xc3\x28").unwrap()), ["<1 not UTF-8>"]);
}

#[test]
fn a_compressed_file_that_ends_early_gives_what_it_has() {
    let line = |i: usize| format!("{{\"text\": \"{i} {}\"}}\n", i * 7919);
    let plain: String = (0..20_000).map(line).collect();
    for (name, packed) in [
        ("a.jsonl.gz", gzip(plain.as_bytes())),
        ("a.jsonl.zst", zstd::encode_all(plain.as_bytes(), 1).unwrap()),
    ] {
        let documents = shapes(read_all(name, &packed[..packed.len() / 2]).unwrap());
        assert!(documents.len() > 100, "{name}: {}", documents.len());
        assert!(documents.last().unwrap().ends_with("<1 unreadable files or ends of files>"));
    }
}

#[test]
fn a_damaged_page_costs_the_rest_of_its_row_group_and_no_more() {
    let whole = std::fs::read(PARQUET).unwrap();
    let count = |bytes: &[u8]| -> (u64, u64) {
        let (mut sound, mut lost) = (0, 0);
        for document in read_all("damaged.parquet", bytes).unwrap() {
            match document.content {
                Content::Damaged(damage) => lost += damage.documents,
                _ => sound += 1,
            }
        }
        (sound, lost)
    };
    assert_eq!(count(&whole), (2342, 0));
    for part in 1..8 {
        let mut bytes = whole.clone();
        let at = bytes.len() * part / 8;
        bytes[at..at + 64].fill(0xAA);
        let (sound, lost) = count(&bytes);
        // Bytes between columns or of another column may be hit; never is a document lost uncounted.
        assert_eq!(sound + lost, 2342, "damage at {at}");
    }
    // Anywhere, the pages' headers and the end of the file with its metadata included: lost documents, but no panic.
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..60 {
        let mut bytes = whole.clone();
        let range = if round % 2 == 0 { bytes.len() } else { 4000.min(bytes.len()) };
        let at = bytes.len() - 1 - random(range);
        bytes[at] ^= 1 << random(8);
        if let Ok(documents) = read_all("damaged.parquet", &bytes) {
            assert!(!documents.is_empty());
        }
    }
    let document = read_all("short.parquet", &whole[..1000]).unwrap().remove(0);
    assert!(matches!(document.content, Content::Damaged(Damage { kind: DamageKind::UnreadableFile, .. })));
    assert!(document.place.to_string().ends_with("short.parquet"));
}

#[test]
fn flat_files_of_tokens_are_streams_of_their_width() {
    let stream = |tokens: &[u32], begins: bool| Content::Stream { tokens: tokens.to_vec(), begins };
    let contents = |name: &str, bytes: &[u8]| -> Result<Vec<Content>> {
        Ok(read_all(name, bytes)?.into_iter().map(|document| document.content).collect())
    };
    let u16s: Vec<u8> = (0..70_000_u32).flat_map(|token| ((token % 50_000) as u16).to_le_bytes()).collect();
    let pieces = contents("a.bin", &u16s).unwrap();
    let tokens: Vec<u32> = (0..70_000).map(|token| token % 50_000).collect();
    assert_eq!(pieces, [stream(&tokens[..65_536], true), stream(&tokens[65_536..], false)]);

    let u32s: Vec<u8> = (0..100_u32).flat_map(u32::to_le_bytes).collect();
    let error = contents("a.bin", &u32s).unwrap_err().to_string();
    assert!(error.contains("--format u32"), "{error}");
    let large = ReadOptions { vocabulary: 100_000, ..options() };
    let read = open_stream(
        std::io::Cursor::new(u32s.clone()),
        &ReadOptions { format: Some(InputFormat::U32), ..large },
    );
    assert_eq!(read.unwrap().count(), 1);

    let mut llm_c = vec![0_u8; 1024];
    llm_c[..4].copy_from_slice(&20_240_520_u32.to_le_bytes());
    llm_c[4..8].copy_from_slice(&1_u32.to_le_bytes());
    llm_c.extend([7, 0, 8, 0]);
    assert_eq!(contents("a.bin", &llm_c).unwrap(), [stream(&[7, 8], true)]);

    let error = contents("a.bin", &[1, 0, 0x60, 0xEA]).unwrap_err().to_string();
    assert!(error.contains("a.bin: token 1 is 60000") && error.contains("50000 tokens"), "{error}");
    let odd = shapes(read_all("a.bin", &[1, 0, 2]).unwrap());
    assert_eq!(odd[1], "token 1: <1 unreadable files or ends of files>");
}

/// A NumPy file by its specification.
fn npy(dtype: &str, order: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let order = if order { "True" } else { "False" };
    let mut header = format!("{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}");
    while !(header.len() + 11).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

#[test]
fn numpy_files_are_streams_or_ready_contexts() {
    let i64s: Vec<u8> = (1..9_i64).flat_map(i64::to_le_bytes).collect();
    let stream = read_all("a.npy", &npy("<i8", false, "(8,)", &i64s)).unwrap();
    assert_eq!(stream[0].content, Content::Stream { tokens: (1..9).collect(), begins: true });
    let rows = read_all("a.npy", &npy("<i8", false, "(2, 4)", &i64s)).unwrap();
    let rows: Vec<Content> = rows.into_iter().map(|document| document.content).collect();
    assert_eq!(rows, [Content::Context(vec![1, 2, 3, 4]), Content::Context(vec![5, 6, 7, 8])]);

    let error = |bytes: Vec<u8>| read_all("a.npy", &bytes).unwrap_err().to_string();
    assert!(error(npy("<i8", false, "(1, 8)", &i64s)).contains("--context 8"));
    assert!(error(npy("<i8", true, "(2, 4)", &i64s)).contains("ascontiguousarray"));
    assert!(error(npy("<f8", false, "(8,)", &i64s)).contains("<f8"));
    assert!(error(npy("<i8", false, "(2, 2, 2)", &i64s)).contains("[contexts, T]"));
    let negative: Vec<u8> = [1_i64, -1].into_iter().flat_map(i64::to_le_bytes).collect();
    assert!(error(npy("<i8", false, "(2,)", &negative)).contains("token 1 is -1"));

    let impossible =
        shapes(read_all("a.npy", &npy("<i8", false, "(4611686018427387904, 4)", &i64s)).unwrap());
    assert_eq!(impossible, ["<1 unreadable files or ends of files>"]);
    let short = shapes(read_all("a.npy", &npy("<i8", false, "(3, 4)", &i64s)).unwrap());
    assert_eq!(short[2], "token 8: <1 unreadable files or ends of files>");
    assert_eq!(shapes(read_all("a.npy", b"no numpy").unwrap()), ["<1 unreadable files or ends of files>"]);
}
