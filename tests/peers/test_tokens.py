"""Tokens and contexts of a store against Hugging Face's tokenizer and a written-out packing rule."""

import json

import numpy
import pyarrow.parquet
import pytest
import zarr
from nasty_texts import texts as nasty_texts
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

DOCUMENTS = 1000


def packed(documents, bos, length):
    """The rule, word by word: a BOS in front of each document, documents one after another; every context
    starts with a BOS, of its own where a document goes on. Returns the whole contexts and how many
    documents ended exactly at a context's end."""
    contexts, context, exact_ends = [], [], 0
    for document in documents:
        if not document:
            continue
        for index, token in enumerate([bos, *document]):
            if not context and index > 0:
                context.append(bos)
            context.append(token)
            if len(context) == length:
                contexts.append(context)
                context = []
                exact_ends += index == len(document)
    return numpy.array(contexts), exact_ends


def stored_tokens(program, tmp_path, model, texts, length, tokens):
    """The contexts of a dump of these texts at the cheapest hook: tokens do not depend on it."""
    # As ASCII, so that every odd character goes through JSON's escapes; half of them also as they are.
    lines = [json.dumps({"text": text}, ensure_ascii=index % 2 == 0) for index, text in enumerate(texts)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8", newline="\n")
    program(
        "activation-dump", "--model", model, "--dataset", tmp_path / "text.jsonl", "--layer", 0,
        "--context", length, "--tokens", tokens, "--batch", 64, "--out", tmp_path / "store",
    )  # fmt: skip
    return zarr.open(tmp_path / "store")["tokens"][:]


@pytest.mark.parametrize("length", [128, 16])
def test_ids_and_contexts_are_the_tokenizers_and_the_rules(repository, program, tmp_path, length):
    model = repository / "models/smollm2-135m"
    table = pyarrow.parquet.read_table(repository / "tests/data/public-domain-english.parquet")
    texts = table["text"].to_pylist()[:DOCUMENTS]
    texts[7] = ""  # an empty document adds nothing

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    bos = json.loads((model / "config.json").read_text())["bos_token_id"]
    expected, exact_ends = packed(ids, bos, length)
    if length == 16:
        assert exact_ends > 10, "the corner where a document ends with its context is not met"

    tokens = stored_tokens(program, tmp_path, model, texts, length, 10 * expected.size)
    assert tokens.shape == expected.shape
    assert (tokens == expected).all()


def byte_level():
    """As GPT-2, Llama 3 and SmolLM2: bytes, after composing characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>"], initial_alphabet=alphabet)


def sentence_pieces():
    """As Llama 2: spaces become a letter, what is unknown falls back to bytes, the text is one word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    return tokenizer, trainers.BpeTrainer(vocab_size=700, special_tokens=["<s>", "<unk>", *bytes_])


def unigrams():
    """As T5 and XLNet: the likeliest segmentation, after folding compatible characters."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer, trainers.UnigramTrainer(vocab_size=400, special_tokens=["<s>", "<unk>"], unk_token="<unk>")


@pytest.mark.parametrize("kind", [byte_level, sentence_pieces, unigrams])
def test_every_kind_of_tokenizer_gives_nasty_text_the_same_ids(repository, program, tmp_path, kind):
    table = pyarrow.parquet.read_table(repository / "tests/data/public-domain-english.parquet")
    tokenizer, trainer = kind()
    tokenizer.train_from_iterator(table["text"].to_pylist()[:40], trainer)
    vocabulary, length, bos = tokenizer.get_vocab_size(), 8, tokenizer.token_to_id("<s>")
    sizes = dict(n_embd=4, n_head=1, n_layer=1, n_positions=length, vocab_size=vocabulary)
    model = tmp_path / "model"
    GPT2LMHeadModel(GPT2Config(bos_token_id=bos, eos_token_id=bos, **sizes)).save_pretrained(model)
    tokenizer.save(str(model / "tokenizer.json"))

    texts = [text for text in nasty_texts() for _ in range(2)]  # escaped and as they are
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    expected, _ = packed(ids, bos, length)
    tokens = stored_tokens(program, tmp_path, model, texts, length, 10 * expected.size)
    assert tokens.shape == expected.shape
    assert (tokens == expected).all()
