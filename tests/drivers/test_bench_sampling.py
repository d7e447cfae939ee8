"""Sampling is measured beside the readable sampler."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from native._cpu import lib

from drivers.bench import sampling
from drivers.model.reference_sampler import choose_token
from native.attention import use_variant
from native.sampling import sample

VOCAB = 2500


@pytest.fixture(autouse=True)
def _best_variant_afterwards() -> Iterator[None]:
    yield
    use_variant(lib.llmos_best_variant())


@pytest.mark.parametrize("kind", sampling.LOGITS)
def test_both_samplers_do_the_same_work(kind: str) -> None:
    """What is timed beside each other has the same result, and rows are as their names say."""
    logits = sampling.make_logits(kind, VOCAB)
    assert {"sure": logits.max() > 15, "unsure": 5 < logits.max() < 15, "equal": np.ptp(logits) == 0}[kind]
    for draw in sampling.DRAWS.values():
        assert sample(logits, draw).token == choose_token(logits, draw).token


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints a line for every combination; of one run, the ratio is that of its times."""
    arguments = ["--draws", "temperature", "penalties", "--logits", "sure", "equal", "--variants", "plain"]
    assert sampling.main([*arguments, "--vocabulary", str(VOCAB), "--runs", "1"]) == 0
    rows = [
        msgspec.json.decode(line, type=sampling.SamplingMeasurement)
        for line in capsys.readouterr().out.splitlines()
    ]
    assert [(row.draw, row.logits, row.variant) for row in rows] == [
        ("temperature", "sure", "plain"), ("temperature", "equal", "plain"),
        ("penalties", "sure", "plain"), ("penalties", "equal", "plain"),
    ]  # fmt: skip
    for row in rows:
        assert row.ratio == pytest.approx(row.reference_microseconds / row.microseconds)
