"""Generated tasks over long contexts: key-value recall and copying.

Every generator is a function of its `random.Random` alone. Weights: what cannot be predicted (a new
key, a random value, which question comes next) weighs 0, prose filler 1, answers `ANSWER`.

Recall formats (`k` a key, `v` its value, one format per document):

    lines     "k: v\\n"                        asked as  "? k:" → " v\\n"
    sentence  "The code for k is v."           asked as  "Again, the code for k is" → " v."
    json      '"k": "v",'                      asked as  '"k":' → ' "v",'
    chat      <|user|>Remember that the code for k is v.<|end|><|assistant|>Noted.<|end|>
              asked as  <|user|>What is the code for k?<|end|><|assistant|> → The code for k is v.<|end|>

Copy formats: "Text: x\\nCopy: x\\n", <|user|>Repeat after me: x<|end|><|assistant|>x<|end|>, and bare
repetition of a run of random tokens or of a passage.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import attrs

from drivers.training.document import Document, Encode
from drivers.training.tokenizer import ASSISTANT, BOS, END, SYSTEM, USER
from drivers.training.words import ADJECTIVES, NAMES, WORDS, number, pseudo_word

ANSWER = 3.0
ATTRIBUTES = ("code", "code", "code", "number", "password", "secret", "place", "price", "name", "colour")
STYLES = ("lines", "sentence", "json", "chat")

Make = Callable[[random.Random], str]
KEYS: tuple[Make, ...] = (
    lambda rng: rng.choice(WORDS),
    lambda rng: rng.choice(NAMES),
    lambda rng: f"{rng.choice(ADJECTIVES)} {rng.choice(WORDS)}",
    pseudo_word,
)
VALUES: tuple[Make, ...] = (number, number, lambda rng: rng.choice(WORDS), pseudo_word)


@attrs.frozen
class Recall:
    """How one recall document speaks: its style, the attribute's word, the kinds of key and value."""

    style: str
    attribute: str
    key: Make
    value: Make

    @classmethod
    def draw(cls, rng: random.Random, style: str | None = None) -> Recall:
        return cls(style or rng.choice(STYLES), rng.choice(ATTRIBUTES), rng.choice(KEYS), rng.choice(VALUES))

    def new_pair(self, rng: random.Random, seen: set[str]) -> tuple[str, str]:
        """A pair whose key is not in `seen`; adds it."""
        key = self.key(rng)
        while key in seen:
            key = self.key(rng) if len(seen) < 40 else f"{rng.choice(ADJECTIVES)} {pseudo_word(rng)}"
        seen.add(key)
        return key, self.value(rng)

    def tell(self, doc: Document, key: str, value: str) -> None:
        """Append the definition of a pair."""
        if self.style == "lines":
            doc.add(f"{key}: {value}\n", 0)
        elif self.style == "json":
            doc.add(f'"{key}": "{value}", ', 0)
        elif self.style == "sentence":
            doc.add(f" The {self.attribute} for {key} is {value}.", 0)
        else:
            doc.add(f"{USER}Remember that the {self.attribute} for {key} is {value}.{END}{ASSISTANT}", 0)
            doc.add(f"Noted.{END}", 1)

    def ask(self, doc: Document, key: str) -> None:
        """Append a question, up to where the answer begins."""
        if self.style == "lines":
            doc.add(f"? {key}:", 0)
        elif self.style == "json":
            doc.add(f'"{key}":', 0)
        elif self.style == "sentence":
            doc.add(f" Again, the {self.attribute} for {key} is", 0)
        else:
            doc.add(f"{USER}What is the {self.attribute} for {key}?{END}{ASSISTANT}", 0)

    def answer(self, doc: Document, key: str, value: str) -> None:
        """Append the answer."""
        if self.style == "lines":
            doc.add(f" {value}\n", ANSWER)
        elif self.style == "json":
            doc.add(f' "{value}", ', ANSWER)
        elif self.style == "sentence":
            doc.add(f" {value}.", ANSWER)
        else:
            doc.add(f"The {self.attribute} for {key} is", 1)
            doc.add(f" {value}.{END}", ANSWER)

    def fill(self, doc: Document, text: str, trained: bool = True) -> None:
        """Append a sentence of prose between facts, dressed for the style."""
        weight = 1.0 if trained else 0.0
        if self.style == "chat":
            doc.add(f"{USER}Read this: ", 0)
            doc.add(text, weight)
            doc.add(f"{END}{ASSISTANT}", 0)
            doc.add(f"Noted.{END}", weight)
        else:
            doc.add(f" {text}" if self.style == "sentence" else f"{text}\n", weight)


def recall_stream(rng: random.Random, encode: Encode, prose: Sequence[str], num_tokens: int) -> Document:
    """Facts, filler and questions interleaved; each fact is asked once, at a widely drawn distance.

    One document teaches dozens of answers, which is what makes the recall heads form early.
    """
    doc, style, seen = Document(encode), Recall.draw(rng), set()
    doc.add(BOS, 0)
    pool: list[tuple[str, str]] = []
    want = int(2 * (max(3.0, num_tokens / 48)) ** rng.random())
    filler = rng.choice((0.0, 0.0, 0.2, 0.6))
    while len(doc) <= num_tokens:
        if rng.random() < filler:
            style.fill(doc, rng.choice(prose))
        elif len(pool) < want:
            pair = style.new_pair(rng, seen)
            pool.append(pair)
            style.tell(doc, *pair)
        else:
            key, value = pool.pop(0 if rng.random() < 0.5 else rng.randrange(len(pool)))
            style.ask(doc, key)
            style.answer(doc, key, value)
    return doc


def recall_haystack(rng: random.Random, encode: Encode, prose: Sequence[str], num_tokens: int) -> Document:
    """A few facts, prose up to the end, then every fact asked once in another order: the long distances."""
    doc, style, seen = Document(encode), Recall.draw(rng), set()
    doc.add(BOS, 0)
    pairs = [style.new_pair(rng, seen) for _ in range(rng.choice((1, 2, 4, 8, 16)))]
    for pair in pairs:
        style.tell(doc, *pair)
        if rng.random() < 0.3:
            style.fill(doc, rng.choice(prose))
    tail = Document(encode)
    for key, value in rng.sample(pairs, len(pairs)):
        style.ask(tail, key)
        style.answer(tail, key, value)
    stop = len(doc) + rng.random() * max(0, num_tokens - len(doc) - len(tail) - 80)
    if rng.random() < 0.7:
        stop = num_tokens - len(tail) - 60
    while len(doc) < stop:
        style.fill(doc, rng.choice(prose))
    doc.add_ids(tail.ids)
    doc.weights[-len(tail) :] = tail.weights
    return doc


def recall_notes(rng: random.Random, encode: Encode, prose: Sequence[str], num_tokens: int) -> Document:
    """One chat request with everything in it: notes among prose in the first message, then questions."""
    doc, seen = Document(encode), set()
    style = attrs.evolve(Recall.draw(rng, "sentence"))
    chat = attrs.evolve(style, style="chat")
    doc.add(BOS + rng.choice((USER, SYSTEM)), 0)
    doc.add(rng.choice(("Here are some notes.", "Read the text.", "Use these facts.")), 0)
    pairs = [style.new_pair(rng, seen) for _ in range(rng.choice((1, 2, 3, 5, 8)))]
    size = num_tokens * rng.choice((0.2, 0.5, 0.8, 0.85)) / len(pairs)
    for pair in pairs:
        style.tell(doc, *pair)
        start = len(doc)
        while len(doc) - start < size - 40:
            style.fill(doc, rng.choice(prose))
    rng.shuffle(pairs)
    for i, (key, value) in enumerate(pairs):
        if i == 0 and doc.ids[1] == encode(USER)[0]:
            doc.add(f" What is the {style.attribute} for {key}?{END}{ASSISTANT}", 0)
        else:
            doc.add(END if i == 0 else "", 0)
            chat.ask(doc, key)
        chat.answer(doc, key, value)
    return doc


def copy_text(rng: random.Random, prose: Sequence[str], num_words: int) -> str:
    """Something to repeat: words, invented words, numbers or prose."""
    kind = rng.randrange(5)
    if kind == 0:
        return " ".join(rng.choice(WORDS) for _ in range(num_words))
    if kind == 1:
        return " ".join(pseudo_word(rng) for _ in range(max(1, num_words // 2)))
    if kind == 2:
        return " ".join(number(rng) for _ in range(max(1, num_words // 2)))
    if kind == 3:
        return " ".join(
            rng.choice((rng.choice(NAMES), rng.choice(WORDS), number(rng))) for _ in range(num_words)
        )
    return rng.choice(prose)


def copy_document(rng: random.Random, encode: Encode, prose: Sequence[str], num_tokens: int) -> Document:
    """Copying in one of three formats, repeated until the row is full."""
    doc = Document(encode)
    doc.add(BOS, 0)
    kind = rng.choice(("chat", "raw", "bare"))
    while len(doc) <= num_tokens:
        if kind == "bare":
            run = rng.randrange(8, max(9, num_tokens // 2))
            if rng.random() < 0.5:
                ids = [rng.randrange(263, 2400) for _ in range(run)]
            else:
                ids = []
                while len(ids) < run:
                    ids += encode(" " + rng.choice(prose))
            doc.add_ids(ids, 0)
            doc.add_ids(ids, 1)
            continue
        text = copy_text(rng, prose, rng.choice((1, 2, 4, 8, 16)))
        if kind == "chat":
            ask = rng.choice(("Repeat after me", "Repeat", "Say", "Copy this"))
            doc.add(f"{USER}{ask}: {text}{END}{ASSISTANT}", 0)
            doc.add(f"{text}{END}", ANSWER / 2)
        else:
            doc.add(f"Text: {text}\nCopy:", 0)
            doc.add(f" {text}\n", ANSWER / 2)
    return doc


RECALL = (recall_stream, recall_stream, recall_haystack, recall_notes)


def recall_document(rng: random.Random, encode: Encode, prose: Sequence[str], num_tokens: int) -> Document:
    """One of the recall shapes."""
    return rng.choice(RECALL)(rng, encode, prose, num_tokens)
