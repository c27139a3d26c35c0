"""Writes the dialogues about pith that the demo model learns by heart.

A topic in topics.py holds question patterns and a few answers that say the same thing. Here they are expanded,
misspelt, mixed with small talk and strung together into conversations. The same seed gives the same dialogues.

    python dialogues.py --n 5 --seed 1     prints some
"""
import argparse
import random
import re

from topics import CORE, GENERAL, PITH, SMALL_TALK, SYSTEM_PROMPTS, UNKNOWN

ALTERNATIVES = re.compile(r"\{([^{}]*)\}")
NAMES = ("Anna Ben Carla David Emma Felix Grace Henry Ines Jack Kim Leo Maria Nina Omar Paul Rosa Sam Tom Vera "
         "Alice Bob Lucy Max Julia Peter Sara Daniel Olga Ravi").split()
OPENINGS = ["Hi, ", "Hello, ", "Hi! ", "Hello! ", "Hey, ", "Please tell me: ", "One question: ", "Quick question: ",
            "I have a question. ", "Tell me, ", "Thanks. ", "Okay. ", "Ok, ", "And ", "So ", "Good to know. ",
            "I am new here. ", "Sorry, ", "Could you help me? "]
CLOSINGS = [" Thanks!", " Please.", " Thank you.", " I am curious.", " please", " Explain it to me.", " In short."]


def expand(pattern, rng):
    """Replaces each {a|b|c} by one of its alternatives, innermost first."""
    while found := ALTERNATIVES.search(pattern):
        pattern = pattern[:found.start()] + rng.choice(found[1].split("|")) + pattern[found.end():]
    return re.sub(r" +([?,!]|\.( |$))", r"\1", re.sub(r" +", " ", pattern)).strip()


def misspell(text, rng):
    """Drops, doubles or swaps a letter or two, as hurried fingers do."""
    letters = list(text)
    for _ in range(rng.choice((1, 1, 2))):
        i = rng.randrange(len(letters))
        if i + 1 < len(letters) and letters[i].isalpha() and letters[i + 1].isalpha():
            letters[i:i + 2] = rng.choice(([letters[i]], [letters[i]] * 2 + [letters[i + 1]],
                                           [letters[i + 1], letters[i]]))
    return "".join(letters)


def phrase(question, rng):
    """The question as some user might type it."""
    if rng.random() < 0.22:
        opening = rng.choice(OPENINGS)
        if opening.rstrip()[-1] not in ".!?" and not question.startswith("I "):
            question = question[0].lower() + question[1:]
        question = opening + question
    if rng.random() < 0.10 and question[-1] in "?.":
        question += rng.choice(CLOSINGS)
    if rng.random() < 0.35:
        question = question.lower()
    if rng.random() < 0.25:
        question = question.rstrip("?.!")
    if rng.random() < 0.15:
        question = misspell(question, rng)
    return question


def exchange(topics, rng):
    """One question and its answer."""
    questions, answers = rng.choice(topics)
    name = rng.choice(NAMES)
    question = expand(rng.choice(questions), rng).replace("NAME", name)
    answer = expand(rng.choice(answers), rng).replace("NAME", name)
    return [("user", phrase(question, rng)), ("assistant", answer)]


def dialogue(rng):
    """A conversation of one to five exchanges, a list of (role, text)."""
    turns = []
    if rng.random() < 0.3:
        turns.append(("system", rng.choice(SYSTEM_PROMPTS)))
    kinds = (CORE, PITH, SMALL_TALK, GENERAL, UNKNOWN)
    for i in range(rng.choice((1, 1, 1, 2, 2, 3, 4, 5))):
        weights = (25, 40, 22, 5, 8) if i == 0 else (30, 45, 12, 5, 8)
        turns += exchange(rng.choices(kinds, weights)[0], rng)
    return turns


def dialogues(n, seed):
    rng = random.Random(seed)
    return [dialogue(rng) for _ in range(n)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for turns in dialogues(arguments.n, arguments.seed):
        print("\n".join(f"{role}: {text}" for role, text in turns), end="\n\n")
