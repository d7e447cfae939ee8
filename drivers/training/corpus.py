"""The prose: public-domain books, read in place, never copied into the project.

The files live outside the project, in `shared/data/text-corpora` beside its root (or wherever
`LLMOS_CORPORA` points). Each book gives its last part to the held-out split, so that no sentence
of the held-out text, nor its neighbours, was seen in training.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import attrs

HELD_OUT_FRACTION = 0.04
DEFAULT_FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "text-corpora"


class CorpusMissing(FileNotFoundError):
    """A book is not where it should be; the message says where it was looked for."""


@attrs.frozen
class Book:
    """One book, split. `language` is an ISO 639-1 code."""

    name: str
    language: str
    train: str
    held_out: str


def unwrap(text: str) -> str:
    """Join the lines of each paragraph: hard line breaks would teach the model to wrap its answers."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(" ".join(p.split()) for p in paragraphs if p.strip())


def _novel(text: str) -> str:
    return unwrap(text)


def _play(text: str) -> str:
    return text.strip()


def _gutenberg(text: str) -> str:
    """A Gutenberg book without its licence header and footer (those are not prose)."""
    body = re.split(r"\*\*\* ?(?:START|END) OF TH[^\n]*\n", text)
    return unwrap(body[1] if len(body) > 1 else text)


def _aozora(text: str) -> str:
    """An Aozora book without notes and ruby: readings and marks in brackets are not prose."""
    parts = re.split(r"-{20,}\n", text)
    text = parts[-1].split("\n底本：")[0]
    text = re.sub(r"《[^》]*》|［＃[^］]*］|｜", "", text)
    return text.strip()


BOOKS = (
    ("war-and-peace_first-half.txt", "en", _novel),
    ("tinyshakespeare.txt", "en", _play),
    ("botchan.txt", "en", _gutenberg),
    ("wagahaiwa_nekodearu.ja.txt", "ja", _aozora),
)


def corpus_folder() -> Path:
    """Where the books are: `LLMOS_CORPORA` if set, else beside the project."""
    return Path(os.environ.get("LLMOS_CORPORA", DEFAULT_FOLDER))


def load_books(folder: Path | None = None) -> list[Book]:
    """Read and split the books.

    Raises:
        CorpusMissing: a file is absent.
    """
    folder = folder or corpus_folder()
    books = []
    for name, language, clean in BOOKS:
        path = folder / name
        if not path.is_file():
            raise CorpusMissing(
                f"no {name} in {folder}; set LLMOS_CORPORA to the folder with the text corpora"
            )
        text = clean(path.read_text(encoding="utf-8-sig").replace("\r\n", "\n"))
        cut = re.compile(r"\n|[.!?] ").search(text, int(len(text) * (1 - HELD_OUT_FRACTION))).end()
        books.append(Book(name, language, text[:cut], text[cut:].strip()))
    return books


def sentences(text: str) -> list[str]:
    """Sentences of 30 to 220 characters on one line each: the filler between a fact and its question."""
    flat = " ".join(text.split())
    found = re.findall(r"[A-Z][^.!?]*[.!?]+[\"']?", flat)
    return [s for s in found if 30 <= len(s) <= 220]
