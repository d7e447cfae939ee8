"""`llmos bench gateway`: every token of every stream is right, and nothing is left, also beside attackers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drivers.sim import SimModel
from llmos.bench.gateway import Outcome, main, measure
from llmos.bench.report import read_rows
from llmos.bench.stream_load import Stream
from llmos.config import ConfigError

MIB = 1 << 20


def check(outcome: Outcome, num_streams: int) -> None:
    """What must be so whatever the machine is like."""
    assert outcome.wrong == []
    assert len(outcome.streams) >= num_streams
    assert outcome.num_tokens == sum(stream.num_wanted for stream in outcome.streams)
    lateness = outcome.lateness  # of no token, where the machine was so slow that none came in time
    assert min(lateness.alone + lateness.gateway + lateness.socket, default=1) > 0
    assert len(lateness.gateway) == len(lateness.socket)
    assert outcome.num_files_left == 0


def test_a_short_load() -> None:
    """Streams that come one after the other on the same places are all told the device's own tokens."""
    check(measure(num_streams=24, seconds=4.0, step_ms=5.0, attack="", ramp=0.5), 24)


@pytest.mark.slow
def test_a_minute_of_256_streams() -> None:
    """No token is lost, wrong or out of order, and the memory of neither process grows."""
    outcome = measure(num_streams=256, seconds=60.0, step_ms=50.0, attack="", ramp=4.0)
    check(outcome, 256)
    assert outcome.kernel.growth() < 12 * MIB
    assert outcome.gateway.growth() < 12 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["idle", "slowloris", "bodies"])
def test_attackers_change_no_token(attack: str) -> None:
    """Beside clients of bad will the others are told the same, to the last token."""
    outcome = measure(num_streams=64, seconds=15.0, step_ms=50.0, attack=attack, ramp=1.0)
    check(outcome, 64)
    assert outcome.num_attacks > 0


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_a_stream_is_read_however_it_is_cut(size: int) -> None:
    """Heads, chunks and events in pieces; a lost, doubled or swapped token and a cut end are found."""
    model = SimModel(500, (1,), eos_every=100)
    expected = model.expected_tokens((5, 6), 6)

    def read(tokens: list[int], end: bytes = b"data: [DONE]\n\n") -> str:
        said = b"HTTP/1.1 200 \r\ndate: x\r\n\r\n"
        for index, token in enumerate(tokens):
            prompt = b'"prompt_token_ids":[5,6],' if index == 0 else b""
            row = b'{"index":0,"delta":{},"token_ids":[%d],"token_times":[%d.5]}' % (token, index)
            event = b'data: {%b"choices":[%b]}\n\n' % (prompt, row)
            said += b"%x\r\n%b\r\n" % (len(event), event)
        said += b"%x\r\n%b\r\n0\r\n\r\n" % (len(end), end)
        stream = Stream(6, 0.0)
        for start in range(0, len(said), size):
            stream.feed(9.0, said[start : start + size])
        return stream.explain(model)

    right = list(expected)
    assert read(right) == ""
    assert "differ" in read(right[:-1])
    assert "differ" in read([*right, right[-1]])
    assert "differ" in read([right[1], right[0], *right[2:]])
    assert read(right, b"") == "it was cut off"
    assert read(right, b'data: {"error":{"message":"no"}}\n\ndata: [DONE]\n\n') == "no"


@pytest.mark.slow
def test_the_command_writes_rows(tmp_path: Path) -> None:
    """A case for each kind of neighbour."""
    command = [sys.executable, "-m", "llmos.cli", "bench", "gateway", "--json", str(tmp_path / "rows")]
    load = ["--streams", "4", "--seconds", "7", "--step-ms", "20", "--beside", "idle"]
    subprocess.run([*command, *load], check=True, stdout=subprocess.DEVNULL, timeout=300)
    rows = {row.metric: row for row in read_rows([tmp_path / "rows"])}
    assert rows["streams, each token right"].ratio == 1
    by_gateway = rows["P99 late, gateway, beside the socket"].value
    by_socket = rows["P99 late, socket, beside the gateway"].value
    assert rows["P99 late, added by the gateway"].value == pytest.approx(by_gateway - by_socket)
    assert rows["attacks"].value == 1000


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"beside": ["ghosts"]}, "ghosts"),
        ({"num_streams": 0}, "--streams"),
        ({"step_ms": 0.0}, "--step-ms"),
        ({"seconds": 6.0}, "--seconds"),
    ],
)
def test_a_wrong_option_is_refused_by_name(wrong: dict[str, Any], names: str) -> None:
    """Before any server is started."""
    right = {"num_streams": 1, "seconds": 10.0, "step_ms": 50.0, "beside": ["nobody"], "json_path": None}
    with pytest.raises(ConfigError, match=names):
        main(**right | wrong)
