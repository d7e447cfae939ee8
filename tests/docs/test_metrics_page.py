"""docs/metrics.md against what a server says of itself: names, types, labels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmos.bench.server import Server, running_server
from tests.docs.typed_page import OPTIONS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "metrics.md").read_text(encoding="utf-8")
OWN_LABELS = {"le"}  # of histograms' buckets

Row = tuple[str, frozenset[str]]  # type, labels


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that has vLLM's names and users, too, and has answered somebody."""
    with running_server(*OPTIONS, "--metrics-compat", "vllm", "--max-users", "1") as running:
        body = {"prompt": "Once upon a time", "max_tokens": 2, "user": "ann"}
        httpx.post(f"{running.url}/v1/completions", json=body, timeout=60).raise_for_status()
        yield running


def rows() -> dict[str, Row]:
    """Name → type and labels, as the page has them."""
    found = re.findall(
        r"^\| `([\w:]+)` \| (counter|gauge|histogram) \|([^|]*)\| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE
    )
    assert len(found) == len({name for name, *_ in found}), "a name is there twice"
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _, _ in found}


def families(text: str) -> dict[str, Row]:
    """Name → type and labels, as a server tells them; of families without samples the labels are unknown."""
    found: dict[str, Row] = {}
    for family in text_string_to_metric_families(text):
        if family.name.endswith("_created"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - OWN_LABELS
        found[name] = (family.type, frozenset(labels))
    return found


def test_each_metric_is_in_the_page(server: Server) -> None:
    """Every name that the server tells is there with its type and labels, and no other."""
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    told, shown = families(text), rows()
    assert set(told) - set(shown) == set(), "not in the page"
    assert set(shown) - set(told) == set(), "not told"
    has_samples = {name for name, (_, labels) in told.items() if labels}
    assert {name: told[name] for name in has_samples} == {name: shown[name] for name in has_samples}
    assert {name: told[name][0] for name in told} == {name: shown[name][0] for name in told}
    labelled = {name for name, (_, labels) in shown.items() if labels}
    assert labelled - has_samples <= {"llmos_swapped_bytes_total"}, "no sample tells its labels"


def test_units_are_the_names_units() -> None:
    """What is called seconds is in seconds, and so on."""
    for name, unit in re.findall(r"^\| `([\w:]+)` \| \w+ \|[^|]*\| ([^|]+) \|", PAGE, re.MULTILINE):
        for word in ("seconds", "bytes", "tokens", "pages", "frames", "steps"):
            if re.search(rf"_{word}(_total)?$", name):
                assert unit == word, name


def test_expressions_use_names_that_are_there() -> None:
    """Each expression of the page is about metrics that it lists."""
    for expression in re.findall(r"^\| [^|]+\? \| `(.*?)` \| ", PAGE, re.MULTILINE):
        names = re.findall(r"\bllmos_\w+", expression)
        assert names
        for name in names:
            assert name in rows() or name.removesuffix("_bucket") in rows(), name
