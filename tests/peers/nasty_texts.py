"""Texts that tokenizers have stumbled over, and the golden file of their ids.

    python tests/peers/nasty_texts.py     writes tests/golden/nasty-texts.jsonl

The golden file holds each text with the ids that Hugging Face's tokenizers give it with SmolLM2's tokenizer
(models/smollm2-135m, see scripts/fetch-smollm2), so that a test without Python can hold ours against them.
"""

import json
import pathlib
import random

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

TEXTS = [
    "e\u0301 and \u00e9, A\u030a and \u00c5, \u1e9b\u0323",  # the same letters, composed and not
    "\ufb01 \u2460 \u210c \uff21\uff22 \u00bd",  # compatibility characters
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea \u202eright to left\u202c",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u0939\u093f\u0928\u094d\u0926\u0940 \u0f56\u0f7c\u0f51",
    "a\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307" * 20,  # a tower of marks
    "\x00\x01\x02 \x07 \x1b[31m \x7f \x80\x9f",  # control characters
    "\ufeffbegins with a byte-order mark; \ufffd replaced; \ufffe \uffff no characters",
    "\ue000 private, \U000f0000 far private, \U0010ffff the last, \u0378 not assigned",
    "spaces:\u00a0\u2000\u2003\u2009\u200b\u202f\u205f\u3000\u180e\u2060|\t|\v|\f|",
    "lines:\r\none\rtwo\ntwo\u2028three\u2029four\u0085five\n\n\n",
    "   leading, trailing and      many      spaces   ",
    "     ",
    "\n",
    " ",
    "<|endoftext|>a special token's text<|im_start|> and another<|im_end|> < | endoftext | >",
    "</s><s>[INST] [PAD] <unk> <0x0A> \u2581\u0120\u010a letters that stand for others",
    "it's I'll WE'VE o\u2019clock 3.14159 1,000,000 1e-9 0xDEADBEEF v1.2.3",
    "a" * 3000,
    "!?" * 500,
    "\u00e4" * 501,
    "\U0001f600" * 77,
    "0123456789" * 60,
    "\U0001d54f \U00010348 \U0002070e \U0001f9ec astral",
    "\u0130stanbul \u0131 stra\u00dfe \u1e9e \ufb00 \u01c5 \u03a3\u03c2 letters that change length with case",
    "Zalgo t\u0337\u0310e\u0334\u0357x\u0338t\u0335 \u200e\u200f\u202a\u2066\u2069 \u00ad soft",
    "https://example.org/a_b-c?q=%C3%A4&r=\u00e4#x user@example.org C:\\dir\\file",
    '{"json": ["in", "a \\"text\\""]} <a href="#">&amp;</a> \\u00e4 \\n',
]


def texts():
    """The list above and random text of all planes, without surrogates (which are not text)."""
    source = random.Random(0)
    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    mixed = ["".join(chr(source.randrange(*source.choice(ranges))) for _ in range(80)) for _ in range(20)]
    return TEXTS + mixed


def main():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(REPOSITORY / "models/smollm2-135m/tokenizer.json"))
    lines = [
        json.dumps({"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids}) for text in texts()
    ]
    path = REPOSITORY / "tests/golden/nasty-texts.jsonl"
    path.write_text("\n".join(lines) + "\n")
    print(f"{path}: {len(lines)} texts, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
