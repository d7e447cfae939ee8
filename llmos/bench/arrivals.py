"""Which requests a load generator sends, and when: from a trace, or drawn from distributions."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterator
from datetime import datetime
from itertools import islice, takewhile
from pathlib import Path

import attrs

from llmos.bench.conversations import read_trace
from llmos.config import ConfigError

DEFAULT_REQUESTS = 64


@attrs.frozen
class PlannedRequest:
    """A request that will be sent."""

    at: float  # seconds from the start
    num_input_tokens: int
    num_output_tokens: int


@attrs.frozen
class Lengths:
    """A length in tokens: fixed where sigma is 0, else lognormal with this mean."""

    mean: float
    sigma: float = 0.0

    @classmethod
    def parse(cls, option: str, text: str) -> Lengths:
        """Read "128" or "160:0.7". Raises ConfigError."""
        mean, _, sigma = text.partition(":")
        try:
            lengths = cls(float(mean), float(sigma or 0))
        except ValueError:
            raise ConfigError(f"{option} {text!r} is neither N nor MEAN:SIGMA") from None
        if not (1 <= lengths.mean < math.inf and 0 <= lengths.sigma < math.inf):
            raise ConfigError(f"{option} {text!r}: the mean is at least 1, sigma at least 0")
        return lengths

    def draw(self, rng: random.Random) -> int:
        """One length, at least 1."""
        if not self.sigma:
            return round(self.mean)
        return max(1, round(rng.lognormvariate(math.log(self.mean) - self.sigma**2 / 2, self.sigma)))


def plan_requests(
    *, trace: str | None, speed: float | None, rate: float | None, burstiness: float | None,
    input_tokens: str | None, output_tokens: str | None, num_requests: int | None, seconds: float | None,
    seed: int,
) -> list[PlannedRequest]:  # fmt: skip
    """The requests that the options of `llmos bench serve` ask for; they depend on the arguments alone.

    Raises:
        ConfigError: an option is out of range or does not go with another; the trace cannot be read.
    """
    positive = {
        "--speed": speed, "--rate": rate, "--burstiness": burstiness, "--requests": num_requests,
        "--seconds": seconds,
    }  # fmt: skip
    for option, value in positive.items():
        is_at_once = option == "--rate" and value == math.inf and trace is None
        if value is not None and not 0 < value < math.inf and not is_at_once:
            raise ConfigError(f"{option} {value} is not a number above 0")
    if rate == math.inf and num_requests is None and seconds is not None:
        raise ConfigError("--rate inf sends all at once: --requests says how many")
    if trace is None:
        if speed is not None:
            raise ConfigError("--speed goes with --trace")
        source = _drawn(
            rate or 1.0, burstiness or 1.0, Lengths.parse("--input-tokens", input_tokens or "128"),
            Lengths.parse("--output-tokens", output_tokens or "32"), seed,
        )  # fmt: skip
    else:
        if burstiness or input_tokens or output_tokens:
            raise ConfigError("--burstiness, --input-tokens and --output-tokens do not go with --trace")
        if speed and rate:
            raise ConfigError("--speed and --rate both scale the trace: give one")
        source = iter(_traced(trace, speed, rate))
    if seconds is not None:
        source = takewhile(lambda request: request.at < seconds, source)
    if num_requests is not None or seconds is None:
        source = islice(source, num_requests or DEFAULT_REQUESTS)
    planned = list(source)
    if not planned:
        raise ConfigError("no request arrives: --seconds is too short, or the trace is empty")
    return planned


def _drawn(
    rate: float, burstiness: float, inputs: Lengths, outputs: Lengths, seed: int
) -> Iterator[PlannedRequest]:
    """Endless; gaps of a gamma distribution with mean 1/rate, 0 for inf, and shape `burstiness`."""
    lengths, times = random.Random(f"lengths {seed}"), random.Random(f"times {seed}")
    now = 0.0
    while True:
        now += times.gammavariate(burstiness, 1 / (rate * burstiness)) if rate < math.inf else 0.0
        yield PlannedRequest(now, inputs.draw(lengths), outputs.draw(lengths))


def _traced(path: str, speed: float | None, rate: float | None) -> list[PlannedRequest]:
    """The rows of a trace, the first at 0, in the order of their times."""
    rows = read_trace(path)
    try:
        with Path(path).open(newline="") as lines:
            stamps = [datetime.fromisoformat(row["TIMESTAMP"]).timestamp() for row in csv.DictReader(lines)]
    except (KeyError, ValueError) as error:
        raise ConfigError(f"trace {path} lacks TIMESTAMP: {error}") from error
    if not stamps:
        return []
    first = min(stamps)
    span = max(stamps) - first
    if rate:
        speed = rate * span / max(1, len(stamps) - 1)
    factor = 1 / speed if speed else 1.0
    planned = [
        PlannedRequest((stamp - first) * factor, max(1, row.num_prompt_tokens), max(1, row.num_output_tokens))
        for stamp, row in zip(stamps, rows, strict=True)
    ]
    return sorted(planned, key=lambda request: request.at)
