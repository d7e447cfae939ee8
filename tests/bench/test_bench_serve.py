"""`llmos bench serve`: what is sent, what is made of the answers, and real loads on real servers."""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from llmos.bench.arrivals import PlannedRequest, plan_requests
from llmos.bench.report import BenchRow, Report, read_rows
from llmos.bench.serve import Finished, Measured, Slo
from llmos.bench.serve_table import print_table
from llmos.bench.server import running_server
from llmos.config import ConfigError
from tests.system.leaks import assert_no_leak, count

NO_OPTIONS: dict[str, Any] = dict.fromkeys(
    ("trace", "speed", "rate", "burstiness", "input_tokens", "output_tokens", "num_requests", "seconds")
) | {"seed": 0}
gaps = st.lists(st.floats(1e-4, 2.0), min_size=1, max_size=8)


def plan(**options: Any) -> list[PlannedRequest]:
    return plan_requests(**(NO_OPTIONS | options))


@given(
    st.lists(st.tuples(st.floats(0, 9), gaps), max_size=12),
    st.none() | st.floats(1, 2000),
    st.none() | st.floats(1, 2000),
)
def test_statistics_follow_the_model(
    drawn: list[tuple[float, list[float]]], ttft_ms: float | None, tbt_ms: float | None
) -> None:
    """Every row is what numpy makes of the same times."""
    streams = [(at, (at + np.cumsum(waits)).tolist()) for at, waits in drawn]
    prompts = range(len(streams))  # tokens; 0: the server did not say
    measured = Measured(
        4.0, len(streams) + 3, [Finished(*each, size) for each, size in zip(streams, prompts, strict=True)]
    )
    measured.errors.update({"status 429": 2})
    report = Report("serve")
    measured.add_rows(report, "case", Slo(ttft_ms, tbt_ms))
    found = {row.metric: row.value for row in report.rows}

    first = [tokens[0] - at for at, tokens in streams]
    between = np.concatenate([np.diff(tokens) for _, tokens in streams] or [np.empty(0)])
    whole = [tokens[-1] - at for at, tokens in streams]
    mean_gap = [float(np.mean(np.diff(tokens))) if len(tokens) > 1 else 0.0 for _, tokens in streams]
    several = [gap for gap, (_, tokens) in zip(mean_gap, streams, strict=True) if len(tokens) > 1]
    expected = {"finished": len(streams), "errors: status 429": 2, "cut off": 1, "duration": 4.0}
    expected |= {"prompt throughput": sum(prompts) / 4} if sum(prompts) else {}
    expected |= {
        "request throughput": len(streams) / 4,
        "output throughput": sum(len(t) for _, t in streams) / 4,
    }
    named = {"TTFT": first, "TPOT": several, "TBT": between, "end to end": whole}
    for name, values in named.items():
        if len(values):
            expected[f"mean {name}"] = 1e3 * float(np.mean(values))
            expected |= {f"P{p} {name}": 1e3 * float(np.percentile(values, p)) for p in (50, 95, 99)}
    goodput = found.pop("goodput", None)
    assert found == pytest.approx(expected)
    assert (goodput is None) == (ttft_ms is None and tbt_ms is None)
    if goodput is not None:  # a hair's breadth at the limit is rounding, not a defect

        def num_good(slack: float) -> int:
            return sum(
                1e3 * a <= (ttft_ms or math.inf) * slack and 1e3 * b <= (tbt_ms or math.inf) * slack
                for a, b in zip(first, mean_gap, strict=True)
            )

        assert num_good(1 - 1e-9) <= goodput * 4 + 1e-9
        assert goodput * 4 - 1e-9 <= num_good(1 + 1e-9)


@given(st.integers(0, 99), st.floats(0.1, 50), st.floats(0.2, 5), st.floats(0.5, 20))
def test_the_plan_is_fixed_by_the_seed(seed: int, rate: float, burstiness: float, seconds: float) -> None:
    """The same seed gives the same requests, in order; a shorter time gives the first of them."""
    options = {"seed": seed, "rate": rate, "burstiness": burstiness, "input_tokens": "40:0.7"}
    planned = plan(**options, num_requests=50)
    assert planned == plan(**options, num_requests=50)
    assert planned == sorted(planned, key=lambda request: request.at)
    assert len(planned) == 50
    assert all(request.num_input_tokens >= 1 and request.num_output_tokens == 32 for request in planned)
    early = [request for request in planned if request.at < seconds]
    if early:
        assert plan(**options, num_requests=50, seconds=seconds) == early


def test_rate_and_lengths_are_kept_on_average() -> None:
    """Means of many draws, and bursts vary more than a Poisson process."""
    spread = {}
    for burstiness in (0.25, 1.0):
        planned = plan(rate=5, burstiness=burstiness, input_tokens="100:0.5", num_requests=20_000)
        assert planned[-1].at == pytest.approx(4000, rel=0.05)
        assert np.mean([request.num_input_tokens for request in planned]) == pytest.approx(100, rel=0.03)
        spread[burstiness] = np.diff([request.at for request in planned]).std() * 5
    assert spread[1.0] == pytest.approx(1, rel=0.05)
    assert spread[0.25] == pytest.approx(2, rel=0.1)


def test_a_trace_is_scaled(tmp_path: Path) -> None:
    """By a factor, or to a mean rate."""
    trace = tmp_path / "trace.csv"
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46.5000000,374,44"]
    trace.write_text("\n".join([*lines, "2023-11-16 18:15:50.5000000,396,109\n"]))
    assert plan(trace=str(trace)) == [PlannedRequest(0.0, 374, 44), PlannedRequest(4.0, 396, 109)]
    assert plan(trace=str(trace), speed=2.0)[1].at == 2.0
    assert plan(trace=str(trace), rate=4.0)[1].at == 0.25
    for wrong in ({"speed": 1.0, "rate": 1.0}, {"input_tokens": "3"}, {"speed": -1.0}):
        with pytest.raises(ConfigError):
            plan(trace=str(trace), **wrong)
    for wrong in ({"speed": 2.0}, {"input_tokens": "x"}, {"output_tokens": "0"}, {"num_requests": 0}):
        with pytest.raises(ConfigError):
            plan(**wrong)


def test_all_at_once() -> None:
    """A rate of inf has no gaps, and needs a number of requests."""
    assert {request.at for request in plan(rate=math.inf, num_requests=9)} == {0.0}
    assert len(plan(rate=math.inf, num_requests=9, seconds=1.0)) == 9
    for wrong in ({"seconds": 1.0}, {"trace": "trace.csv"}):
        with pytest.raises(ConfigError, match="--rate inf"):
            plan(rate=math.inf, **wrong)


def test_the_table_is_of_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Times by percentile, then a line for each other number; without an answer there is no table."""
    report, measured = Report("serve"), Measured(seconds=2.0, num_arrived=2)
    measured.errors["status 429"] = 1
    measured.add_rows(report, "m, 2 requests", Slo())
    print_table(report.rows, "m, 2 requests")
    assert capsys.readouterr().out.splitlines() == [
        "m, 2 requests",
        "finished: 0 requests, 0% of those that arrived",
        "duration: 2 s",
        "request throughput: 0 requests/s",
        "output throughput: 0 tokens/s",
        "errors: status 429: 1 requests, 50% of those that arrived",
        "cut off: 1 requests, 50% of those that arrived",
    ]
    report = Report("serve")
    measured.finished.append(Finished(0.0, [0.5, 0.75, 1.5], 7))
    measured.add_rows(report, "m, 2 requests", Slo(ttft_ms=600.0))
    print_table(report.rows, "m, 2 requests")
    lines = capsys.readouterr().out.splitlines()
    (first,) = [line.split() for line in lines if "TTFT" in line]
    assert first[1::2] == ["TTFT", "500", "500", "500", "500"]
    assert lines[-2:] == [
        "goodput: 0.5 requests/s, 50% of those that arrived",
        "errors: status 429: 1 requests, 50% of those that arrived",
    ]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "llmos.cli", "bench", "serve", *arguments]


def rows_of(path: Path) -> dict[str, BenchRow]:
    return {row.metric: row for row in read_rows([path])}


def test_a_real_load(tmp_path: Path) -> None:
    """Every request is answered in full, and nothing stays behind."""
    out = tmp_path / "rows.jsonl"
    with running_server("--device", "cpu") as server:
        before = count(server)
        options = [
            "--url",
            server.url,
            "--input-tokens",
            "20:0.5",
            "--output-tokens",
            "5",
            "--json",
            str(out),
        ]
        slo = ["--slo-ttft-ms", "1e9", "--slo-tbt-ms", "1e9"]
        run = command(*options, *slo, "--rate", "50", "--requests", "12", "--concurrency", "3")
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, timeout=300)
        rows = rows_of(out)
        assert rows["finished"].value == 12
        assert rows["goodput"].ratio == 1
        assert rows["output throughput"].value == pytest.approx(5 * rows["request throughput"].value)
        assert rows["P50 TTFT"].value <= rows["P50 end to end"].value
        assert not any(metric.startswith("errors") for metric in rows)
        assert_no_leak(server, before)


class Refusing(http.server.BaseHTTPRequestHandler):
    """Refuses who has no key (401), and everybody else (429)."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_error(429 if self.headers["Authorization"] == "Bearer right" else 401)

    def do_GET(self) -> None:
        self.send_error(401)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Silent(Refusing):
    """Takes requests and never answers; notes that one came."""

    came = threading.Event()
    over = threading.Event()

    def do_POST(self) -> None:
        self.came.set()
        self.over.wait()


@contextlib.contextmanager
def scripted(
    handler: type[http.server.BaseHTTPRequestHandler], authority: trustme.CA | None = None
) -> Iterator[str]:
    """A server; with an authority it speaks TLS."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if authority:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http{'s' if authority else ''}://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_errors_are_counted_by_kind(tmp_path: Path) -> None:
    """A wrong key, a limit, and nobody there."""
    out = tmp_path / "rows.jsonl"
    with scripted(Refusing) as url:
        cases = [(url, "wrong", "status 401"), (url, "right", "status 429")]
        cases.append(("http://127.0.0.1:1", "right", "no connection"))
        for address, key, kind in cases:
            options = ["--url", address, "--api-key", key, "--model", "m", "--json", str(out)]
            run = command(*options, "--requests", "3", "--rate", "100")
            done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 1
            assert {"no connection": "nobody answers"}.get(kind, kind) in done.stderr
            rows = rows_of(out)
            assert rows[f"errors: {kind}"].value == 3
            assert rows["finished"].value == 0


class Recording(http.server.BaseHTTPRequestHandler):
    """Answers in two tokens, as a server does that only knows OpenAI's fields; notes what it was asked."""

    asked: ClassVar[list[tuple[str, dict[str, Any], str | None]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body, self.headers["Authorization"]))
        said: list[dict[str, Any]] = [{"text": "a"}, {"text": "b"}]
        if "messages" in body:
            said = [{"delta": {"role": "assistant", "content": ""}}]  # which is no token
            said += [{"delta": {"reasoning_content": "a"}}, {"delta": {"content": "b"}}, {"delta": {}}]
        events: list[dict[str, Any]] = [{"choices": [each]} for each in said]
        events.append({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 2}})
        self.send_response(200)
        self.end_headers()
        lines = [json.dumps(event) for event in events]
        self.wfile.write("".join(f"data: {line}\r\n\r\n" for line in [*lines, "[DONE]"]).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("prompts", "is_plain"), [("tokens", False), ("text", True), ("chat", False), ("chat", True)]
)
def test_how_it_is_asked(tmp_path: Path, prompts: str, is_plain: bool) -> None:
    """Ids, words or a chat, with or without fields of others, below a base URL like an SDK's, by TLS."""
    out, authority = tmp_path / "rows.jsonl", trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    environment = {**os.environ, "SSL_CERT_FILE": str(tmp_path / "ca.pem"), "OPENAI_API_KEY": "from outside"}
    Recording.asked.clear()
    with scripted(Recording, authority) as url:
        options = ["--url", f"{url}/some/v1/", "--model", "m", "--prompts", prompts, "--json", str(out)]
        options += ["--requests", "2", "--rate", "inf", "--input-tokens", "7", "--output-tokens", "5"]
        run = command(*options, *(["--plain"] if is_plain else []))
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, timeout=120, env=environment)
    rows = rows_of(out)
    assert rows["finished"].value == 2
    assert rows["output throughput"].value == pytest.approx(2 * rows["request throughput"].value)
    assert rows["prompt throughput"].value == pytest.approx(11 * rows["request throughput"].value)
    (path, body, key), (_, other, _) = Recording.asked
    assert key == "Bearer from outside"
    assert path == ("/some/v1/chat/completions" if prompts == "chat" else "/some/v1/completions")
    assert body != other
    prompt = body["messages"][0]["content"] if prompts == "chat" else body["prompt"]
    assert len(prompt if prompts == "tokens" else prompt.split()) == 7
    assert all(isinstance(each, int if prompts == "tokens" else str) for each in prompt)
    assert body["max_completion_tokens" if prompts == "chat" and is_plain else "max_tokens"] == 5
    known = {"model", "messages", "prompt", "max_tokens", "max_completion_tokens", "stream", "stream_options"}
    assert (set(body) <= {*known, "temperature"}) == is_plain


def test_an_interrupted_load_prints_what_it_has(tmp_path: Path) -> None:
    """SIGINT while the server says nothing."""
    out = tmp_path / "rows.jsonl"
    with scripted(Silent) as url:
        run = command("--url", url, "--model", "m", "--rate", "100", "--requests", "2", "--json", str(out))
        with subprocess.Popen(run, stdout=subprocess.DEVNULL) as process:
            assert Silent.came.wait(60)
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(60) == 1
        Silent.over.set()
    rows = rows_of(out)
    assert rows["cut off"].value >= 1
    assert rows["finished"].value == 0
