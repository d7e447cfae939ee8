"""Measure the built-in model: `python -m drivers.training.evaluate` prints the tables of its card.

An answer counts when the whole of it is the model's greedy continuation. That is read from one
forward pass over question and answer: each answer token must be the arg-max given what precedes it.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from drivers.builtin import base_path, draft_path
from drivers.training.corpus import Book, load_books, sentences
from drivers.training.dialogue import CHECKED
from drivers.training.document import Document, Encode
from drivers.training.model import Llama, load_model
from drivers.training.tasks import STYLES, Recall, copy_text
from drivers.training.tokenizer import ASSISTANT, BOS, END, USER

DISTANCES = (64, 128, 256, 512, 1024, 1536, 1900)
MAX_TOKENS = 2048
SEED = 0  # of all that is asked
LOOKAHEAD = 4


def encoder(tokenizer: Tokenizer) -> Encode:
    """Text to ids, without `<s>` added."""
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


@torch.no_grad()
def greedy(model: Llama, ids: list[int]) -> list[int]:
    """`greedy(ids)[i]` is the arg-max after `ids[: i + 1]`."""
    return model(torch.tensor([ids]))[0].argmax(-1).tolist()


def answers(model: Llama, ids: list[int], start: int) -> bool:
    """Whether `ids[start:]` is the greedy continuation of `ids[:start]`."""
    return greedy(model, ids[:-1])[start - 1 :] == ids[start:]


def rows_of(tokenizer: Tokenizer, text: str, length: int) -> list[list[int]]:
    """The text in whole rows of `length` tokens, each after a `<s>`."""
    ids = encoder(tokenizer)(text)
    bos = tokenizer.token_to_id(BOS)
    return [[bos, *ids[i : i + length]] for i in range(0, len(ids) - length + 1, length)]


@torch.no_grad()
def held_out(
    model: Llama, tokenizer: Tokenizer, text: str, length: int, max_rows: int | None = None
) -> tuple[float, float]:
    """(nats per token, bits per byte) over rows of `length` tokens."""
    num_bytes_per_token = len(text.encode()) / len(encoder(tokenizer)(text))
    losses = []
    for row in rows_of(tokenizer, text, length)[:max_rows]:
        losses.append(
            F.cross_entropy(model(torch.tensor([row[:-1]]))[0].float(), torch.tensor(row[1:])).item()
        )
    loss = sum(losses) / len(losses)
    return loss, loss / math.log(2) / num_bytes_per_token


def probe(
    rng: random.Random, encode: Encode, prose: list[str], distance: int, style: str
) -> tuple[Document, int]:
    """Four facts, unseen prose, and a question about one fact, which ended about `distance` tokens before.

    Returns the document and where its answer starts.
    """
    doc, speak, seen = Document(encode), Recall.draw(rng, style), set()
    doc.add(BOS, 0)
    pairs = [speak.new_pair(rng, seen) for _ in range(4)]
    key, value = rng.choice(pairs)
    fact = 0
    for pair in pairs:
        speak.tell(doc, *pair)
        fact = len(doc) if pair == (key, value) else fact
    while len(doc) - fact < distance - 40:
        speak.fill(doc, rng.choice(prose), trained=False)
    speak.ask(doc, key)
    start = len(doc)
    speak.answer(doc, key, value)
    return doc, start


def recall(model: Llama, tokenizer: Tokenizer, prose: list[str], distance: int, num: int) -> float:
    """Part of `num` probes answered, over all styles in turn."""
    rng = random.Random(f"recall/{SEED}/{distance}")
    right = 0
    for i in range(num):
        doc, start = probe(rng, encoder(tokenizer), prose, distance, STYLES[i % len(STYLES)])
        right += len(doc) <= MAX_TOKENS and answers(model, doc.ids, start)
    return right / num


def copying(model: Llama, tokenizer: Tokenizer, prose: list[str], num_words: int, num: int) -> float:
    """Part of `num` chat requests to repeat a text (words, invented words, numbers, prose) obeyed."""
    rng, encode, right = random.Random(f"copy/{SEED}"), encoder(tokenizer), 0
    for _ in range(num):
        text = copy_text(rng, prose, num_words)
        question = encode(f"{BOS}{USER}Repeat after me: {text}{END}{ASSISTANT}")
        right += answers(model, question + encode(f"{text}{END}"), len(question))
    return right / num


def turns(model: Llama, tokenizer: Tokenizer, num: int) -> Iterator[tuple[str, float]]:
    """(kind of question, part answered) with `num` questions of each kind."""
    encode = encoder(tokenizer)
    for make in CHECKED:
        rng, right = random.Random(f"turn/{SEED}/{make.__name__}"), 0
        for _ in range(num):
            question, answer = make(rng)
            ids = encode(f"{BOS}{USER}{question}{END}{ASSISTANT}")
            right += answers(model, ids + encode(f"{answer}{END}"), len(ids))
        yield make.__name__, right / num


@torch.no_grad()
def generate(model: Llama, ids: list[int], num_tokens: int, stop: int) -> list[int]:
    """Greedy continuation, without a cache: slow and simple."""
    ids = list(ids)
    for _ in range(num_tokens):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == stop:
            break
    return ids


def accepted_lengths(base: list[int], draft: list[int]) -> list[int]:
    """Draft tokens accepted in each greedy round, given both models' arg-max along one text."""
    lengths, i = [], 0
    while i < len(base):
        run = 0
        while run < LOOKAHEAD and i + run < len(base) and base[i + run] == draft[i + run]:
            run += 1
        lengths.append(run)
        i += run + 1  # the base's own token ends the round
    return lengths


def prompts(tokenizer: Tokenizer, books: list[Book], num: int) -> dict[str, list[list[int]]]:
    """Prompts from held-out prose, chat questions and recall chats."""
    encode, english = encoder(tokenizer), [b for b in books if b.language == "en"]
    prose = [s for b in english for s in sentences(b.held_out)]
    rng = random.Random("prompts")
    chat, tasks = [], []
    for _ in range(num):
        chat.append(encode(f"{BOS}{USER}{rng.choice(CHECKED)(rng)[0]}{END}{ASSISTANT}"))
        doc, start = probe(rng, encode, prose, 256, "chat")
        tasks.append(doc.ids[:start])
    rows = [r[:65] for b in english for r in rows_of(tokenizer, b.held_out, 64)]
    return {"prose": rng.sample(rows, num), "chat": chat, "recall": tasks}


def agreement(
    base: Llama, draft: Llama, tokenizer: Tokenizer, books: list[Book], num: int
) -> Iterator[tuple[str, float, float]]:
    """(text, part of positions with the same arg-max, mean draft tokens accepted a round) for each text."""
    rows = [r for b in books if b.language == "en" for r in rows_of(tokenizer, b.held_out, 512)][:40]
    pairs = [(greedy(base, r), greedy(draft, r)) for r in rows]
    yield "held-out prose, as written", *_compare(pairs)
    stop = tokenizer.token_to_id(END)
    for name, starts in prompts(tokenizer, books, num).items():
        pairs = []
        for ids in starts:
            text = generate(base, ids, 64, stop)
            pairs.append((text[len(ids) :], greedy(draft, text[:-1])[len(ids) - 1 :]))
        yield f"{name}, as the base continues it", *_compare(pairs)


def _compare(pairs: list[tuple[list[int], list[int]]]) -> tuple[float, float]:
    same = [x == y for a, b in pairs for x, y in zip(a, b, strict=True)]
    rounds = [n for a, b in pairs for n in accepted_lengths(a, b)]
    return _mean(same), _mean(rounds)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def quick(model: Llama, tokenizer: Tokenizer, books: list[Book], length: int) -> str:
    """One line for the training log."""
    english = next(b for b in books if b.language == "en")
    loss, bits = held_out(model, tokenizer, english.held_out, 256, 16)
    prose = sentences(english.held_out)
    parts = [f"{d}: {recall(model, tokenizer, prose, d, 24):.0%}" for d in DISTANCES if d < length * 2]
    return f"held-out {loss:.3f} ({bits:.3f} bits/byte), recall {', '.join(parts)}"


def report(base: Path, draft: Path, num: int) -> Iterator[str]:
    """The card's tables, line by line."""
    books, tokenizer = load_books(), Tokenizer.from_file(str(base / "tokenizer.json"))
    models = {"base": load_model(base).eval(), "draft": load_model(draft).eval()}
    prose = [s for b in books if b.language == "en" for s in sentences(b.held_out)]

    yield "| held-out text | bytes | base, nats/token | bits/byte | draft, nats/token | bits/byte |"
    yield "|---|---|---|---|---|---|"
    for book in books:
        cells = [f"{x:.3f}" for m in models.values() for x in held_out(m, tokenizer, book.held_out, 1024)]
        yield f"| {book.name} | {len(book.held_out.encode()):,} | {' | '.join(cells)} |"
    yield "\n| distance in tokens | base | draft |\n|---|---|---|"
    for distance in DISTANCES:
        cells = [f"{recall(m, tokenizer, prose, distance, num):.1%}" for m in models.values()]
        yield f"| {distance:,} | {' | '.join(cells)} |"
    yield "\n| copy | base | draft |\n|---|---|---|"
    for num_words in (2, 8, 16):
        cells = [f"{copying(m, tokenizer, prose, num_words, num):.1%}" for m in models.values()]
        yield f"| {num_words} words, or a sentence | {' | '.join(cells)} |"
    yield "\n| question | base | draft |\n|---|---|---|"
    for (name, a), (_, b) in zip(*(turns(m, tokenizer, num) for m in models.values()), strict=True):
        yield f"| {name} | {a:.1%} | {b:.1%} |"
    yield f"\n| text | same arg-max | accepted of {LOOKAHEAD} |\n|---|---|---|"
    for name, same, accepted in agreement(
        models["base"], models["draft"], tokenizer, books, max(1, num // 3)
    ):
        yield f"| {name} | {same:.1%} | {accepted:.2f} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=base_path())
    parser.add_argument("--draft", type=Path, default=draft_path())
    parser.add_argument("--num", type=int, default=200, help="questions per line of a table")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for line in report(args.base, args.draft, args.num):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
