use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Small, so that a short text has many cuts.
const SMALL: Sizes = Sizes { piece: 80, limit: 100_000, around: 48 };

/// What tokenizers are trained on here: prose, figures, code, several scripts.
const SAMPLE: &str = "It's the dog's 3 bones, isn't it? The quick brown fox jumps over the lazy dog 12345 times. \
    We'll see, they've said; I'd rather not (or so).\n\nfn main() {\n    let x = 10_000 + y;\n}\n\
    Größe, naïve café, Ελληνικά γράμματα, русский текст, 日本語のテキスト。中文，也有。 한국어 단어 हिन्दी शब्द العربية\n";

/// Byte pair encoding or WordPiece behind each kind of splitting that models use.
fn tokenizers() -> &'static [(String, Arc<Tokenizer>)] {
    static ALL: LazyLock<Vec<(String, Arc<Tokenizer>)>> = LazyLock::new(|| {
        let byte_level = |prefix: bool, regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "pretokenizers": steps});
        let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
        let llama_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let gpt_4o = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let deepseek = [
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            r"[!#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ];
        let marks = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
        let kinds = [
            ("GPT-2", json!(null), byte_level(false, true)),
            ("RoBERTa", json!(null), byte_level(true, true)),
            (
                "SmolLM2",
                json!(null),
                sequence(vec![json!({"type": "Digits", "individual_digits": true}), byte_level(false, true)]),
            ),
            ("Llama 3", json!(null), sequence(vec![split(llama_3), byte_level(false, false)])),
            ("Qwen2", json!({"type": "NFC"}), sequence(vec![split(llama_3), byte_level(false, false)])),
            ("GPT-4o", json!(null), sequence(vec![split(gpt_4o), byte_level(false, false)])),
            (
                "DeepSeek",
                json!(null),
                sequence(deepseek.map(split).into_iter().chain([byte_level(false, false)]).collect()),
            ),
            ("Metaspace", json!(null), metaspace("always", true)),
            ("Metaspace, first", json!(null), metaspace("first", true)),
            ("Metaspace, never", json!({"type": "NFKC"}), metaspace("never", true)),
            ("Llama 2", marks, json!(null)),
            ("Mistral", json!(null), metaspace("first", false)),
            (
                "BERT",
                json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}),
                json!({"type": "BertPreTokenizer"}),
            ),
            (
                "stripped",
                json!({"type": "Strip", "strip_left": true, "strip_right": true}),
                byte_level(false, true),
            ),
            ("FixedLength", json!(null), json!({"type": "FixedLength", "length": 5})),
            ("spaces behind", json!(null), sequence(vec![split(r"\S+\s*"), byte_level(false, false)])),
        ];
        kinds
            .into_iter()
            .map(|(name, normalizer, splitting)| (name.to_owned(), trained(name, &normalizer, &splitting)))
            .collect()
    });
    &ALL
}

/// A tokenizer with this normalizer and splitting and the merges that [`SAMPLE`] gives, as a `tokenizer.json`.
fn trained(name: &str, normalizer: &Value, splitting: &Value) -> Arc<Tokenizer> {
    use tokenizers::models::bpe::{BPE, BpeTrainer};
    // Without a splitting of its own, merges are learnt within words all the same, as SentencePiece does.
    let learnt_with = match splitting.is_null() || splitting["split"] == json!(false) {
        true => json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        false => splitting.clone(),
    };
    let mut training = tokenizers::Tokenizer::new(BPE::default());
    let json = |value: &Value| serde_json::from_value(value.clone()).unwrap();
    training.with_pre_tokenizer(Some::<PreTokenizer>(json(&learnt_with)));
    let mut trainer = BpeTrainer::builder().vocab_size(600).show_progress(false).build();
    let mut wrapped = tokenizers::models::TrainerWrapper::BpeTrainer(trainer.clone());
    training.train(&mut wrapped, [SAMPLE].into_iter().cycle().take(3)).unwrap();
    trainer.show_progress = false;
    let mut file: Value = serde_json::from_str(&training.to_string(false).unwrap()).unwrap();
    file["normalizer"] = normalizer.clone();
    file["pre_tokenizer"] = splitting.clone();
    file["model"]["unk_token"] = json!("<unk>");
    let next = file["model"]["vocab"].as_object().unwrap().len();
    file["model"]["vocab"]["<unk>"] = json!(next);
    let added = |id: usize, content: &str, lstrip: bool, rstrip: bool| {
        json!({
        "id": id, "content": content, "single_word": false, "lstrip": lstrip, "rstrip": rstrip, "normalized": false, "special": false})
    };
    file["added_tokens"] = json!([
        added(next + 1, "  ", false, false),
        added(next + 2, "<mask>", true, false),
        added(next + 3, "<end>", false, true),
        added(next + 4, "lazy dog", false, false)
    ]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, file.to_string()).unwrap();
    Arc::new(Tokenizer::open(&path).unwrap_or_else(|error| panic!("{name}: {error:#}")))
}

type PreTokenizer = tokenizers::PreTokenizerWrapper;

fn whole(text: &str) -> Document {
    Document { place: Place { file: "text".into(), inside: None }, content: Content::Text(text.to_owned()) }
}

/// The pieces of a document that comes in one part, or in parts cut at every `part` bytes.
fn pieces(tokenizer: &Arc<Tokenizer>, text: &str, part: Option<usize>, sizes: Sizes) -> Vec<Content> {
    let place = Place { file: "text".into(), inside: None };
    let mut parts = Vec::new();
    match part {
        None => parts.push(whole(text)),
        Some(part) => {
            let mut at = 0;
            while at < text.len() {
                let end = text.ceil_char_boundary((at + part).min(text.len()));
                let content = Content::Part {
                    text: text[at..end].to_owned(),
                    begins: at == 0,
                    ends: end == text.len(),
                };
                parts.push(Document { place: place.clone(), content });
                at = end;
            }
        }
    }
    let cut = Pieces::new(parts.into_iter().map(Ok), Some(Arc::clone(tokenizer)), sizes);
    cut.map(|piece| piece.unwrap().content).collect()
}

/// The tokens of a document's pieces; `None` if some of it is too long to be cut.
fn tokens(tokenizer: &Tokenizer, pieces: &[Content]) -> Option<Vec<u32>> {
    let mut tokens = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        match piece {
            Content::Text(text) => tokens.extend(tokenizer.encode(text).unwrap()),
            Content::Part { text, begins, ends } => {
                assert_eq!((*begins, *ends), (index == 0, index + 1 == pieces.len()));
                tokens.extend(tokenizer.encode(text).unwrap());
            }
            Content::Damaged(_) => return None,
            other => panic!("{other:?}"),
        }
    }
    Some(tokens)
}

fn check(text: &str) {
    for (name, tokenizer) in tokenizers() {
        let expected = tokenizer.encode(text).unwrap();
        for part in [None, Some(33), Some(1000)] {
            let found = tokens(tokenizer, &pieces(tokenizer, text, part, SMALL));
            assert_eq!(found.as_ref(), Some(&expected), "{name} in parts of {part:?}: {text:?}");
        }
    }
}

#[test]
fn prose_is_cut_into_many_pieces_for_every_known_tokenizer() {
    let text = SAMPLE.repeat(20);
    check(&text);
    for (name, tokenizer) in tokenizers() {
        let count = pieces(tokenizer, &text, None, SMALL).len();
        match name.as_str() {
            "FixedLength" => assert_eq!(count, 1, "where it cuts depends on all that is in front"),
            "spaces behind" => assert!(count < 10, "a cut at a space is tried out and not taken"),
            _ => assert!(count > text.len() / 400, "{name}: {count} pieces of {} bytes", text.len()),
        }
    }
}

#[test]
fn texts_that_are_hard_to_cut_have_the_tokens_of_the_whole() {
    for text in [
        "a",
        "a ",
        " a",
        "\n",
        " ",
        "'s ",
        "dog's ",
        "12 ",
        "1234567890",
        "! ",
        "!\n",
        "a\n\n",
        "a \n b",
        "\u{a0}x",
        "中",
        "中。",
        "e\u{301} ",
        "\u{301} ",
        "x\u{301}\n",
        "<mask> ",
        "x <mask>",
        "<end> y ",
        "lazy dog ",
        "lazy  dog ",
        "\t",
        "\r\n",
        "a\u{200b} ",
        "👩‍👩‍👧 ",
        "ﬁ ",
        "Ⅷ ",
        "١٢ ",
        "ः ",
        "ⓐ\n",
        "▁ ",
        "a▁b ",
        "<0x0A> ",
    ] {
        check(&text.repeat(300));
    }
}

#[test]
fn a_stretch_without_cuts_is_kept_whole_up_to_the_limit() {
    let sizes = Sizes { limit: 1000, ..SMALL };
    for (name, tokenizer) in tokenizers() {
        for part in [None, Some(64)] {
            let fits = pieces(tokenizer, &"a".repeat(1000), part, sizes);
            assert_eq!(fits.len(), 1, "{name}");
            let long = format!("{} {}", "a".repeat(5000), "b ".repeat(100));
            let cut = pieces(tokenizer, &long, part, sizes);
            let damage = cut.last().unwrap();
            assert!(
                matches!(damage, Content::Damaged(Damage { kind: DamageKind::TooLong, .. })),
                "{name}: {damage:?}"
            );
            assert!(cut.len() <= 1, "{name}: nothing of what follows is used");
        }
    }
}

#[test]
fn a_document_behind_one_that_is_too_long_is_whole_again() {
    let (_, tokenizer) = &tokenizers()[0];
    let part = |text: String, begins: bool, ends: bool| Document {
        content: Content::Part { text, begins, ends },
        ..whole("")
    };
    let documents = [
        part("a".repeat(3000), true, false),
        part("b c d".to_owned(), false, false),
        part("e".to_owned(), false, true),
        part("one ".repeat(30), true, false),
        part("two".to_owned(), false, true),
        whole("three"),
    ];
    let sizes = Sizes { limit: 1000, ..SMALL };
    let cut = Pieces::new(documents.into_iter().map(Ok), Some(Arc::clone(tokenizer)), sizes);
    let cut: Vec<Content> = cut.map(|piece| piece.unwrap().content).collect();
    assert!(matches!(cut[0], Content::Damaged(_)));
    let texts: String = cut[1..]
        .iter()
        .map(|piece| match piece {
            Content::Text(text) | Content::Part { text, .. } => text.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(texts, format!("{}twothree", "one ".repeat(30)));
}

/// Words, signs, spaces and marks in any order, some of them many times over.
fn nasty() -> impl Strategy<Value = String> {
    let bit = prop_oneof![
        4 => "[a-zA-Z]{1,8}",
        4 => Just(" ".to_owned()),
        2 => "[0-9]{1,6}",
        2 => "[.,;:!?()'\"/<>|_-]{1,3}",
        1 => "[ \t\r\n\u{a0}\u{3000}\u{2028}]{1,4}",
        2 => "\\PC{1,6}",
        1 => "[\u{300}-\u{36f}\u{900}-\u{903}\u{200b}-\u{200f}]{1,3}",
        1 => "[一-龥、。！ぁ-んァ-ン가-힣]{1,8}",
        1 => prop::sample::select(vec!["'s", "'LL", "<mask>", "<end>", "lazy dog", "▁", "Ġ", "  ", "ﬁ", "İ", "ẞ", "Σ"]).prop_map(str::to_owned),
        1 => any::<char>().prop_map(|c| c.to_string().repeat(40)),
    ];
    prop::collection::vec(bit, 0..250).prop_map(|bits| bits.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_text_in_pieces_has_the_tokens_of_the_whole(text in nasty()) {
        check(&text);
    }
}
