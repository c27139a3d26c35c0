"""Texts to token streams: the tokenizer, the corpus, the dialogues and the batches drawn from them.

A chat is `<s>`, then for each turn a role marker, the stripped text encoded on its own, and `<|end|>`; this is what the
chat template in export.py renders. Prose is `<s>`, text, `</s>`.
"""
import io
import lzma
import random
import re
from pathlib import Path

import numpy as np
import sentencepiece as spm
import torch

from dialogues import dialogues

BOS, EOS = 1, 2
MARKERS = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]  # ids 3 to 6
ROLE_IDS = {"user": 3, "assistant": 4, "system": 5}
END = 6
SOURCES = ("prose", "dialogue", "pith")

TURN = re.compile(r"^<(user|assistant)>\n", re.MULTILINE)
PIECE_CHARS = 6000   # long books are cut at paragraphs, so that a batch mixes many of them
N_PITH_DIALOGUES = 60000


def documents(corpus, name):
    """Chats as lists of (role, text), prose as strings."""
    with lzma.open(Path(corpus) / f"{name}.txt.xz", "rt", encoding="utf-8") as file:
        for text in file.read().split("\n<|end|>\n"):
            parts = TURN.split(text)
            if len(parts) > 1:
                yield list(zip(parts[1::2], (part.strip() for part in parts[2::2])))
            elif text.strip():
                yield text.strip()


def pieces(text):
    """Cuts prose at blank lines into stretches of about PIECE_CHARS."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) > PIECE_CHARS:
            yield piece
            piece = ""
        piece += ("\n\n" if piece else "") + paragraph
    yield piece


def train_tokenizer(corpus, vocab, seed):
    """A sentencepiece BPE model, as bytes, trained on a sample of all sources."""
    prose = [piece for text in documents(corpus, "train-prose") for piece in pieces(text)]
    chats = list(documents(corpus, "train-dialogue"))
    rng = random.Random(seed)
    chosen = rng.sample(prose, len(prose) // 12) + [
        text for chat in rng.sample(chats, len(chats) // 6) + dialogues(4000, seed) for _, text in chat]
    lines = (line for text in chosen for line in text.split("\n") if line)
    model = io.BytesIO()
    # Identity normalisation: what is encoded is decoded again, byte for byte. The chat markers are control symbols,
    # which no text that a user types can produce.
    spm.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, model_type="bpe", vocab_size=vocab, byte_fallback=True,
        split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, character_coverage=0.9999, max_sentence_length=1 << 16,
        control_symbols=MARKERS, unk_id=0, bos_id=BOS, eos_id=EOS, pad_id=-1, minloglevel=1)
    return model.getvalue()


def encode_chat(tokenizer, chat):
    ids = [BOS]
    for (role, _), text_ids in zip(chat, tokenizer.encode([text for _, text in chat])):
        ids += [ROLE_IDS[role], *text_ids, END]
    return ids


def encode(tokenizer, items):
    """Documents of either kind to one array of ids."""
    ids = []
    for item in items:
        if isinstance(item, str):
            ids.append(np.array([BOS, *tokenizer.encode(item), EOS], np.uint16))
        else:
            ids.append(np.array(encode_chat(tokenizer, item), np.uint16))
    return np.concatenate(ids)


def prepare(corpus, work, vocab, seed):
    """Writes tokenizer.model and the token streams to `work`, unless they are there."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "tokenizer.model"
    if not path.exists():
        path.write_bytes(train_tokenizer(corpus, vocab, seed))
    tokenizer = spm.SentencePieceProcessor(model_file=str(path))

    def stream(name, make):
        if not (work / f"{name}.npy").exists():
            items = list(make())
            random.Random(seed).shuffle(items)
            np.save(work / f"{name}.npy", encode(tokenizer, items))

    def valid(kind):
        return (item for item in documents(corpus, "valid") if isinstance(item, kind))

    stream("prose", lambda: (piece for text in documents(corpus, "train-prose") for piece in pieces(text)))
    stream("dialogue", lambda: documents(corpus, "train-dialogue"))
    stream("pith", lambda: dialogues(N_PITH_DIALOGUES, seed))
    stream("valid-prose", lambda: valid(str))
    stream("valid-dialogue", lambda: valid(list))
    stream("valid-pith", lambda: dialogues(200, seed + 1))
    return tokenizer


class Batches:
    """Rows of `seq` tokens, each from a source drawn by `mix`; the sources are read in order and begin anew at their
    end. `positions` is all the state there is."""

    def __init__(self, work, seed):
        self.streams = {name: np.load(work / f"{name}.npy", mmap_mode="r") for name in SOURCES}
        self.positions = dict.fromkeys(SOURCES, 0)
        self.seed = seed

    def next(self, step, n_rows, seq, mix):
        rng = random.Random(self.seed * 1_000_003 + step)
        rows = []
        for name in rng.choices(SOURCES, mix, k=n_rows):
            stream, start = self.streams[name], self.positions[name]
            if start + seq + 1 > len(stream):
                start = 0
            rows.append(stream[start:start + seq + 1].astype(np.int64))
            self.positions[name] = start + seq
        return torch.from_numpy(np.stack(rows))


def valid_batches(work, name, seq, n_rows):
    """The first rows of a validation stream, [n_rows, seq + 1]."""
    stream = np.load(work / f"valid-{name}.npy")
    n_rows = min(n_rows, (len(stream) - 1) // seq)
    return torch.from_numpy(np.stack([stream[i * seq:i * seq + seq + 1] for i in range(n_rows)]).astype(np.int64))
