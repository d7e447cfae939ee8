"""`--metrics-compat vllm`: every promised name is there, labelled, and tells what happened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shell.gateway.vllm_metrics import FINISHED_REASONS, finished_reason
from syscalls.process import ExitStatus
from tests.gateway.harness import (
    PATIENCE_SECONDS,
    Gateway,
    KernelThread,
    hello,
    running_gateway,
    say_forever,
    says,
)
from tests.scripted_kernel import ScriptedProcess

CHAT = "/v1/chat/completions"
ROW = (("model_name", "scripted"),)
PLAIN = {
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions_total", "vllm:prompt_tokens_total", "vllm:generation_tokens_total",
    "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:request_success_total",
}  # fmt: skip
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds", "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_prompt_tokens", "vllm:request_generation_tokens",
}  # fmt: skip

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def compatible(own_kernel: KernelThread, tmp_path: Path) -> Iterator[Gateway]:
    """A gateway that has vLLM's names."""
    with running_gateway(own_kernel, tmp_path / "g", "--metrics-compat", "vllm") as gateway:
        yield gateway


def scrape(gateway: Gateway) -> Samples:
    """Read the page's samples of vLLM's names, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(gateway.get("/metrics").text)
        for sample in family.samples
        if sample.name.startswith("vllm:")
    }


def test_every_name_tells_what_happened(compatible: Gateway, own_kernel: KernelThread) -> None:
    """Two choices of one prompt, and the kernel's numbers for its device."""
    device = own_kernel.kernel.devices[0]
    own_kernel.kernel.devices[0] = msgspec.structs.replace(
        device, num_running=3, num_waiting=2, num_preemptions=5
    )

    async def program(process: ScriptedProcess) -> ExitStatus:
        await process.emit(ord("a"))
        await process.wait_read()
        await process.emit(ord("b"))
        return ExitStatus("length")

    own_kernel.program = program
    usage = compatible.post(CHAT, hello(n=2, max_tokens=2)).json()["usage"]
    ended = ("vllm:request_success_total", (("finished_reason", "length"), *ROW))
    # What a request was is counted when its answer is on its way.
    samples = own_kernel.wait_until(lambda: (now := scrape(compatible)).get(ended) == 2 and now)
    names = {name for name, _ in samples}
    assert names >= PLAIN | {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
    assert all(dict(labels)["model_name"] == "scripted" for _, labels in samples)

    def value(name: str) -> float:
        return samples[f"vllm:{name}", ROW]

    assert value("prompt_tokens_total") == usage["prompt_tokens"]  # once for both choices
    assert value("generation_tokens_total") == usage["completion_tokens"] == 4
    assert value("request_generation_tokens_sum") == 4
    assert value("request_prompt_tokens_sum") == 2 * usage["prompt_tokens"]
    for name in HISTOGRAMS - {"vllm:inter_token_latency_seconds"}:
        assert samples[f"{name}_count", ROW] == 2
    assert value("inter_token_latency_seconds_count") == 2
    assert value("inter_token_latency_seconds_sum") == pytest.approx(value("request_decode_time_seconds_sum"))
    first, decode = value("time_to_first_token_seconds_sum"), value("request_decode_time_seconds_sum")
    assert 0 < first + decode <= value("e2e_request_latency_seconds_sum")
    assert value("request_prefill_time_seconds_sum") == pytest.approx(0.5)  # the scripted kernel's 0.25 each
    assert (value("num_requests_running"), value("num_requests_waiting")) == (3, 2)
    assert value("kv_cache_usage_perc") == pytest.approx(0.6)
    assert value("num_preemptions_total") == 5
    cache = device.cache
    assert cache is not None
    assert value("prefix_cache_queries_total") == cache.num_query_tokens == 1000
    assert value("prefix_cache_hits_total") == cache.num_hit_tokens == 250


def test_requests_are_counted_by_their_end(compatible: Gateway, own_kernel: KernelThread) -> None:
    """Stopped, failed, left by the client."""
    assert compatible.post(CHAT, hello()).status_code == 200
    own_kernel.program = says("x", end=ExitStatus("error", message="broken"))
    assert compatible.post(CHAT, hello()).status_code == 500
    own_kernel.program = say_forever
    with httpx.stream(
        "POST", f"{compatible.url}{CHAT}", json=hello(stream=True), timeout=PATIENCE_SECONDS
    ) as response:
        next(response.iter_bytes())
    own_kernel.wait_until(lambda: not own_kernel.kernel.processes)
    wanted = {"stop": 1.0, "error": 1.0, "abort": 1.0}

    def by_reason() -> dict[str, float]:
        found = scrape(compatible)
        return {
            dict(labels)["finished_reason"]: value
            for (name, labels), value in found.items()
            if name == "vllm:request_success_total"
        }

    own_kernel.wait_until(lambda: by_reason() == wanted)


def test_without_the_option_the_names_are_not_there(gateway: Gateway) -> None:
    """Nobody pays for what nobody reads."""
    assert scrape(gateway) == {}


def test_ends_have_vllms_words() -> None:
    """Every end that a choice can have is one of them."""
    for reason in ("stop", "length", "tool_calls", None):
        for has_failed in (False, True):
            assert finished_reason(reason, has_failed=has_failed) in FINISHED_REASONS
