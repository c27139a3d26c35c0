#!/usr/bin/env python3
"""Ids that the reference libraries give to hard strings, into tokenizer/*.json.

strings.json  the strings, made here from a seed (valid ones, and byte strings written as Latin-1), and for each
              tokenizer under ../shared the FNV-1a hash of its ids on every string
variants.json two small BPE vocabularies trained here on the text below, dressed with many normalizers, pre-tokenizers,
              decoders and added tokens, and the hashes of ids and of decoded text

Needs: pip install tokenizers sentencepiece tiktoken. Run when a case is added; the tests need none of it.
"""
import base64
import json
import random
import struct
import tempfile
import unicodedata
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
import tiktoken
import tokenizers

HERE = Path(__file__).parent
SHARED = HERE.parent.parent.parent / "shared"

TEXT = """pith reads a checkpoint and writes one file. The file holds two bits for most weights, four for some.
def quantize(group, bits=2):
    scale = (max(group) - min(group)) / (2 ** bits - 1)
    return [round((w - min(group)) / scale) for w in group]  # codes
int main(void) { printf("%d tokens/s\\n", 1234567); return 0; }
Bits, bytes & tokens: 3.14159, 2,718,281 and 1/3; don't we'll I'm they've it's HE'S WE'LL.
Der Fluß fließt träge; naïve café, jalapeño, Ærøskøbing. Ещё раз, съешь этих мягких булок.
東京は大きい。我们在这里学习。한국어 문장입니다. العربية لغة جميلة. हिन्दी में लिखो।
<div class="token">x &lt; y</div>  if (a == b && c != d) { e += f[g]; }
  four spaces    and	tabs		here

new paragraph, then the end.
"""
TEXT *= 4

PIECES = [
    lambda r: "".join(chr(r.choice(ASSIGNED)) for _ in range(r.randrange(1, 12))),
    lambda r: "".join(r.choice(WHITE) for _ in range(r.randrange(1, 12))),
    lambda r: "".join(r.choice(EMOJI) for _ in range(r.randrange(1, 5))),
    lambda r: "".join(chr(r.randrange(32, 127)) for _ in range(r.randrange(1, 30))),
    lambda r: "".join(chr(r.choice(r.choice(SCRIPTS))) for _ in range(r.randrange(1, 15))),
    lambda r: "".join(r.choice("aeA\u1e9b\u00c5\u212b\u0958\u0300\u0301\u0323\u0327\u0308") for _ in range(r.randrange(1, 9))),
    lambda r: "".join(r.choice("0123456789\u0661\u00b2\u00bd\u2167") for _ in range(r.randrange(1, 9))),
    lambda r: r.choice("ae1!=- \n_\u00e9") * r.choice([1, 2, 3, 7, 40]),
    lambda r: r.choice(WORDS) + r.choice(["", " ", "  ", "\n", ", ", "."]),
    lambda r: r.choice(WORDS) + " " + r.choice(WORDS) + " ",
    lambda r: r.choice(["I'm", "we'LL", "they'Ve", "it'\u017f", "don't", "'S", "'d", "x'RE"]) + r.choice([" ", "", "\n"]),
    lambda r: r.choice(["<s>", "</s>", "<unk>", "<|end|>", "<0x0A>", "\u2581", "[INST]", "<|x|>", " <|x|> ", "_one_", "zap"]),
]
WHITE = [" ", " ", " ", "\t", "\n", "\n", "\r", "\u00a0", "\u2003", "\u3000", "\u200b", "\x0b", "\x85", "\u1680", "\u180e"]
EMOJI = ["\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f", "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd",
         "1\ufe0f\u20e3", "\u2705"]
SCRIPTS = [range(0x4e00, 0x9fff), range(0x3041, 0x30ff), range(0xac00, 0xd7a3), range(0x620, 0x64a), range(0x904, 0x94d),
           range(0x410, 0x44f)]
# Unicode 12, which every library involved knows.
ASSIGNED = [c for c in range(0x20, 0x20000)
            if unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs") and unicodedata.ucd_3_2_0.category(chr(c)) != "Cn"]
WORDS = [w for w in TEXT.split() if w]


def make_strings(seed, n):
    r = random.Random(seed)
    fixed = ["", " ", "  ", "\n", "\t\n ", "a", " a", "a ", "\u00e9", "\x00", "a\x00b", "\ufeffbom", "\ufffd", "\u2581", " \u2581 "]
    return fixed + ["".join(r.choice(PIECES)(r) for _ in range(r.choice([1, 1, 2, 3, 4]))) for _ in range(n - len(fixed))]


def make_invalid(seed, n):
    r = random.Random(seed)
    out = []
    for text in make_strings(seed + 1, n):
        data = bytearray(text.encode())
        for _ in range(r.randrange(1, 4)):
            at = r.randrange(len(data) + 1)
            data[at:at + r.randrange(2)] = bytes([r.choice([0x80, 0xff, 0xc0, 0xed, 0xa0, 0xf5, 0xe2, r.randrange(256)])])
        out.append(bytes(data))
    return out


def fnv(data):
    h = 0x811c9dc5
    for byte in data:
        h = (h ^ byte) * 0x01000193 & 0xffffffff
    return h


def hash_ids(ids):
    return fnv(struct.pack(f"<{len(ids)}I", *ids))


def shared_goldens():
    texts, invalid = make_strings(1, 500), make_invalid(2, 90)
    out = {"strings": texts, "invalid_latin1": [b.decode("latin-1") for b in invalid], "tokenizers": []}

    def add(name, files, encode, with_invalid=False, model_type="llama"):
        entry = {"name": name, "files": files, "model_type": model_type, "ids": [hash_ids(encode(t)) for t in texts]}
        if with_invalid:
            entry["invalid_ids"] = [hash_ids(encode(b)) for b in invalid]
        out["tokenizers"].append(entry)

    for name, path in [("llama2", "tokenizers/llama2/tokenizer.model"), ("open_llama", "tokenizers/open_llama_3b/tokenizer.model"),
                       ("mistral-v1", "tokenizers/mistral/tokenizer.model.v1"),
                       ("mistral-v2", "tokenizers/mistral/mistral_instruct_tokenizer_240216.model.v2"),
                       ("mistral-v3", "tokenizers/mistral/mistral_instruct_tokenizer_240323.model.v3"),
                       ("stories260k", "models/stories260k/tokenizer.model")]:
        model = sentencepiece.SentencePieceProcessor(model_file=str(SHARED / path))
        add(name, {"tokenizer.model": path}, model.encode, True)
    for name, path in [("llama2-json", "tokenizers/llama2/tokenizer.json"), ("mistral-v1-json", "tokenizers/mistral/v1.tokenizer.json"),
                       ("mistral-v3-json", "tokenizers/mistral/v3.tokenizer.json"),
                       ("tinystories-json", "models/tinystories-656k/tokenizer.json")]:
        tokenizer = tokenizers.Tokenizer.from_file(str(SHARED / path))
        tokenizer.encode_special_tokens = True
        add(name, {"tokenizer.json": path}, lambda t, k=tokenizer: k.encode(t, add_special_tokens=False).ids)
    llama3 = tiktoken.Encoding("llama3", pat_str=LLAMA3, special_tokens={}, mergeable_ranks={
        base64.b64decode(line.split()[0]): int(line.split()[1])
        for line in open(SHARED / "tokenizers/llama3/tokenizer.model", "rb") if line.strip()})
    add("llama3-tiktoken", {"tokenizer.model": "tokenizers/llama3/tokenizer.model"}, llama3.encode_ordinary)
    files = {"vocab.json": "tokenizers/gpt2/vocab.json", "merges.txt": "tokenizers/gpt2/merges.txt"}
    gpt2 = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*[str(SHARED / p) for p in files.values()]))
    gpt2.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    add("gpt2", files, lambda t: gpt2.encode(t).ids, model_type="gpt2")
    return out


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
QWEN = LLAMA3.replace("{1,3}", "")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
         r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
            r"\s*[\r\n]+|\s+(?!\S)|\s+")


def split(pattern, behavior="Isolated", invert=False, string=False):
    return {"type": "Split", "pattern": {"String" if string else "Regex": pattern}, "behavior": behavior, "invert": invert}


def byte_level(regex=False, prefix=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def sequence(kind, *parts):
    return {"type": "Sequence", kind: list(parts)}


def metaspace(scheme, split_words=True):
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split_words}


def added(id, content, **flags):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
            "special": False, **flags}


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
PRE = "pretokenizers"
SPACES = [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]
FALLBACK = sequence("decoders", {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
                    {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0})
METASPACE = sequence("decoders", {"type": "ByteFallback"}, metaspace("always"))
# name, base vocabulary, normalizer, pre_tokenizer, decoder, model options, added tokens (ids counted from the vocabulary's end)
VARIANTS = [
    ("gpt2", "bytes", None, byte_level(True), BYTES, {}, []),
    ("gpt2-prefix", "bytes", None, byte_level(True, True), BYTES, {}, []),
    ("llama3", "bytes", None, sequence(PRE, split(LLAMA3), byte_level()), BYTES, {"ignore_merges": True}, []),
    ("qwen2", "bytes", {"type": "NFC"}, sequence(PRE, split(QWEN), byte_level()), BYTES, {}, []),
    ("gpt4o", "bytes", None, sequence(PRE, split(GPT4O), byte_level()), BYTES, {}, []),
    ("deepseek", "bytes", sequence("normalizers"),
     sequence(PRE, split(r"\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"), split(DEEPSEEK), byte_level()), BYTES, {}, []),
    ("starcoder", "bytes", None, sequence(PRE, {"type": "Digits", "individual_digits": True}, byte_level(True)), BYTES, {}, []),
    ("digit-runs", "bytes", {"type": "NFKC"}, sequence(PRE, {"type": "Digits", "individual_digits": False}, byte_level()), BYTES, {}, []),
    ("nfd-lower", "bytes", sequence("normalizers", {"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}), byte_level(True), BYTES, {}, []),
    ("nfkd-strip", "bytes", sequence("normalizers", {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "NFKD"}), byte_level(True), BYTES, {}, []),
    ("replace-regex", "bytes", {"type": "Replace", "pattern": {"Regex": r"\s+|\d"}, "content": " "}, byte_level(True), BYTES, {}, []),
    ("punctuation", "bytes", None, sequence(PRE, {"type": "Punctuation", "behavior": "Isolated"}, byte_level()), BYTES, {}, []),
    ("punctuation-contiguous", "bytes", None, sequence(PRE, {"type": "Punctuation", "behavior": "Contiguous"}, byte_level()), BYTES, {}, []),
    ("removed", "bytes", None, sequence(PRE, split(r"\s+", "Removed"), byte_level()), BYTES, {}, []),
    ("inverted", "bytes", None, sequence(PRE, split(r"\p{L}+|\p{N}", "Removed", True), byte_level()), BYTES, {}, []),
    ("with-previous", "bytes", None, sequence(PRE, split(" ", "MergedWithPrevious", string=True), byte_level()), BYTES, {}, []),
    ("with-next", "bytes", None, sequence(PRE, split(r"[ae]", "MergedWithNext"), byte_level()), BYTES, {}, []),
    ("contiguous", "bytes", None, sequence(PRE, split(r"[a-m ]", "Contiguous"), byte_level()), BYTES, {}, []),
    ("white-space", "bytes", None, sequence(PRE, {"type": "WhitespaceSplit"}, byte_level()), BYTES, {}, []),
    ("llama2", "pieces", sequence("normalizers", *SPACES), None, FALLBACK, {"byte_fallback": True, "fuse_unk": True}, []),
    ("llama2-no-fallback", "pieces", sequence("normalizers", *SPACES), None, FALLBACK, {"fuse_unk": True}, []),
    ("llama2-single-unk", "pieces", sequence("normalizers", *SPACES), None, FALLBACK, {"fuse_unk": False}, []),
    ("metaspace-always", "pieces", None, metaspace("always"), METASPACE, {"byte_fallback": True}, []),
    ("metaspace-first", "pieces", None, metaspace("first"), METASPACE, {"byte_fallback": True}, []),
    ("metaspace-never", "pieces", None, metaspace("never", False), sequence("decoders", {"type": "ByteFallback"}, metaspace("never")), {"byte_fallback": True}, []),
    ("unigram", "unigram", None, metaspace("always"), metaspace("always"), {}, []),
    ("unigram-first", "unigram", sequence("normalizers", {"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}),
     metaspace("first"), metaspace("first"), {}, []),
    ("unigram-precompiled", "unigram", sequence("normalizers", "charsmap", {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}),
     sequence(PRE, {"type": "WhitespaceSplit"}, metaspace("always")), metaspace("always"), {}, []),
    ("unigram-whole", "unigram", None, metaspace("never", False), metaspace("never"), {}, []),
    ("unigram-fallback", "unigram-bytes", None, metaspace("always"), METASPACE, {"byte_fallback": True},
     [added(0, "<|x|>", special=True, normalized=False), added(1, "zap", normalized=False)]),
    ("added", "bytes", {"type": "NFC"}, byte_level(True), BYTES, {},
     [added(0, "<|end|>", special=True, normalized=False), added(1, "<|x|>", lstrip=True, rstrip=True, normalized=False),
      added(2, "zap", single_word=True), added(3, "  ", normalized=False), added(4, "_one_")]),
    ("added-pieces", "pieces", sequence("normalizers", *SPACES), None, FALLBACK, {"byte_fallback": True},
     [added(0, "<s>", special=True, normalized=False), added(1, "</s>", special=True, normalized=False), added(2, "[INST]", normalized=False),
      added(3, "<|x|>", rstrip=True, special=True, normalized=False)]),
    # The reference prints such tokens in their normalized form, blank included, and does not skip them: ids only.
    ("added-normalized", "pieces", sequence("normalizers", *SPACES), None, FALLBACK, {"byte_fallback": True},
     [added(0, "</s>", special=True), added(1, "[INST]")]),
    ("added-nfc-normalized", "bytes", {"type": "NFC"}, byte_level(True), BYTES, {}, [added(0, "\u212b")]),
    ("added-metaspace", "pieces", None, metaspace("first"), METASPACE, {"byte_fallback": True},
     [added(0, "<|x|>", special=True, normalized=False), added(1, "zap", normalized=False)]),
]


def train_unigram(with_bytes):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    special = ["<unk>"] + [f"<0x{b:02X}>" for b in range(256)] * with_bytes
    trainer = tokenizers.trainers.UnigramTrainer(vocab_size=600 if with_bytes else 350, special_tokens=special, unk_token="<unk>",
                                                 show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    # Scores that a float holds, as those of sentencepiece's files are.
    return {"unk_id": 0, "vocab": [[text, struct.unpack("<f", struct.pack("<f", score))[0]] for text, score in model["vocab"]]}


def train(base):
    if base.startswith("unigram"):
        return train_unigram(base == "unigram-bytes")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    if base == "bytes":
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=460, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
                                                 show_progress=False)
    else:
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        special = ["<unk>"] + [f"<0x{b:02X}>" for b in range(256)]
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, special_tokens=special, limit_alphabet=90, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]}


def charsmap():
    """sentencepiece's compiled table of a few replacements: full width, ligatures, accents, blanks, and deletions."""
    rules = [(chr(0xff01 + i), chr(0x21 + i)) for i in range(94)] + [
        ("\ufb01", "fi"), ("e\u0301", "\u00e9"), ("a\u0308", "\u00e4"), ("\u212b", "\u00c5"), ("\u3000", " "), ("\t", " "),
        ("\n", " "), ("\u200b", " "), ("\ufeff", ""), ("\u0958", "\u0915\u093c"), ("\u2167", "VIII")]
    with tempfile.TemporaryDirectory() as folder:
        tsv = Path(folder) / "rules.tsv"
        tsv.write_text("".join(" ".join(f"{ord(c):X}" for c in a) + "\t" + " ".join(f"{ord(c):X}" for c in b) + "\n" for a, b in rules))
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT.splitlines()), model_prefix=f"{folder}/m", vocab_size=200,
                                                 normalization_rule_tsv=str(tsv), hard_vocab_limit=False, minloglevel=2)
        model = sentencepiece_model_pb2.ModelProto()
        model.ParseFromString(Path(f"{folder}/m.model").read_bytes())
        return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()}


def variants():
    bases = {base: train(base) for base in ("bytes", "pieces", "unigram", "unigram-bytes")}
    texts = make_strings(3, 100)
    out = {"bases": bases, "strings": texts, "variants": []}
    for name, base, normalizer, pre_tokenizer, decoder, options, tokens in VARIANTS:
        if "charsmap" in (normalizer or {}).get("normalizers", []):
            normalizer = sequence("normalizers", charsmap(), *normalizer["normalizers"][1:])
        n = len(bases[base]["vocab"])
        assert base.startswith("unigram") or not any(token["content"] in bases[base]["vocab"] for token in tokens), name
        model = {"type": "BPE", "dropout": None, "unk_token": "<unk>" if base == "pieces" else None,
                 "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                 "ignore_merges": False, **options}
        if base.startswith("unigram"):
            model = {"type": "Unigram", "byte_fallback": False, **options}
        tokens = [{**token, "id": token["id"] + n} for token in tokens]
        dressed = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": normalizer,
                   "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": decoder, "model": model}
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**dressed, "model": {**model, **bases[base]}}))
        ids = [tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
        out["variants"].append({"name": name, "base": base, "tokenizer": dressed, "ids": [hash_ids(i) for i in ids]})
        if not name.endswith("-normalized"):
            out["variants"][-1]["decoded"] = [fnv(tokenizer.decode(i, skip_special_tokens=True).encode()) for i in ids]
    return out


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    write(HERE / "tokenizer" / "variants.json", variants())
    write(HERE / "tokenizer" / "strings.json", shared_goldens())
