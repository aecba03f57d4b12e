"""Tokens and contexts of a store against Hugging Face's tokenizer and a written-out packing rule."""

import json

import numpy
import pyarrow.parquet
import pytest
import zarr
from tokenizers import Tokenizer

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


@pytest.mark.parametrize("length", [128, 16])
def test_ids_and_contexts_are_the_tokenizers_and_the_rules(repository, program, tmp_path, length):
    model = repository / "models/smollm2-135m"
    table = pyarrow.parquet.read_table(repository / "tests/data/public-domain-english.parquet")
    texts = table["text"].to_pylist()[:DOCUMENTS]
    texts[7] = ""  # an empty document adds nothing
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    bos = json.loads((model / "config.json").read_text())["bos_token_id"]
    expected, exact_ends = packed(ids, bos, length)
    if length == 16:
        assert exact_ends > 10, "the corner where a document ends with its context is not met"

    # The cheapest hook: tokens do not depend on it.
    program(
        "activation-dump", "--model", model, "--dataset", tmp_path / "text.jsonl", "--layer", 0,
        "--context", length, "--tokens", 10 * expected.size, "--batch", 64, "--out", tmp_path / "store",
    )  # fmt: skip
    tokens = zarr.open(tmp_path / "store")["tokens"][:]
    assert tokens.shape == expected.shape
    assert (tokens == expected).all()
