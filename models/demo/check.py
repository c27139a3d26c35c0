"""Asks the exported model the questions of questions.txt and prints how many answers hold the expected words.

    python check.py              greedy, float32
    python check.py --all        prints every answer, not only the wrong ones
    python check.py --ask "What is pith?" "And the licence?"      a conversation
"""
import argparse
from pathlib import Path

import sentencepiece as spm
import torch

from data import END, EOS, ROLE_IDS, encode_chat
from export import load

HERE = Path(__file__).parent


@torch.no_grad()
def reply(model, tokenizer, chat, n_max=120):
    """The greedy answer to a list of (role, text). Without a KV cache: the answers are short."""
    ids = encode_chat(tokenizer, chat) + [ROLE_IDS["assistant"]]
    n_prompt = len(ids)
    while len(ids) - n_prompt < n_max:
        token = int(model(torch.tensor([ids]))[0, -1].argmax())
        if token in (END, EOS):
            break
        ids.append(token)
    return tokenizer.decode(ids[n_prompt:])


def questions(path):
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            question, words = line.rsplit(" = ", 1)
            yield question, words.split("; ")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--questions", type=Path, default=HERE / "questions.txt")
    parser.add_argument("--ask", nargs="+", help="turns of one conversation")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    model = load(arguments.model)
    tokenizer = spm.SentencePieceProcessor(model_file=str(arguments.model / "tokenizer.model"))
    system = [("system", arguments.system)] if arguments.system else []

    if arguments.ask:
        chat = system
        for question in arguments.ask:
            chat = chat + [("user", question)]
            answer = reply(model, tokenizer, chat)
            chat = chat + [("assistant", answer)]
            print(f"> {question}\n{answer}\n")
        return
    n = n_right = 0
    for question, words in questions(arguments.questions):
        answer = reply(model, tokenizer, system + [("user", question)])
        right = all(word.lower() in answer.lower() for word in words)
        n, n_right = n + 1, n_right + right
        if arguments.all or not right:
            print(f"{'right' if right else 'WRONG'}  {question}\n       {answer}")
    print(f"{n_right} of {n} right")


if __name__ == "__main__":
    main()
