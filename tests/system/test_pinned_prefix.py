"""A pinned prefix on a real server with little memory, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from llmos.bench.server import Server
from syscalls.sync import SyncClient
from syscalls.system import CacheInfo
from tests.system.leaks import counted_server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A pool of 2 MiB in small frames, with a process that never needs more than a part of it."""
    numbers = "--weights bf16 --kv bf16 --frame-kib 16 --pool-mib 2"
    options = "--device cpu --threads 1 --cache-policy lru --pin-max-seconds 600"
    with counted_server(*numbers.split(), *options.split()) as running:
        yield running


def num_found(server: Server, number: int, num_tokens: int, **fields: object) -> int:
    """Complete a prompt that shares nothing with another number's; returns how much of it was in memory."""
    prompt = [300 + number, *(300 + i % 150 for i in range(num_tokens - 1))]
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 1, **fields}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def cache_of(client: SyncClient) -> CacheInfo:
    """The prefix cache of the only device."""
    (device,) = client.devices()
    assert device.cache is not None
    return device.cache


def test_what_is_pinned_outlasts_the_rest(server: Server) -> None:
    """Of three equal prompts the pinned one is found when all else has gone, also one whose time was over."""
    with SyncClient(server.socket_path) as client:
        num_tokens = 2 * cache_of(client).tokens_per_page + 1
        assert num_found(server, 1, num_tokens, pin_ttl_s=600) == 0
        num_pinned = cache_of(client).num_pinned_pages
        assert num_pinned > 0
        assert num_found(server, 2, num_tokens) == 0
        assert num_found(server, 3, num_tokens, pin_ttl_s=0.01) == 0
        while cache_of(client).num_pinned_pages > num_pinned:
            pass  # its time is not over yet
        assert (
            f'llmos_cache_pinned_pages{{device="cpu:0"}} {num_pinned}.0'
            in httpx.get(f"{server.url}/metrics", timeout=120).text
        )
        enough = cache_of(client).num_evicted_pages + cache_of(client).num_pages
        number = 4
        while cache_of(client).num_evicted_pages < enough or number < 6:
            assert num_found(server, number, 8 * (num_tokens - 1)) == 0
            number += 1
            assert number < 120
        assert num_found(server, 1, num_tokens) == num_tokens - 1
        assert num_found(server, 2, num_tokens) == 0
        assert num_found(server, 3, num_tokens) == 0


def test_a_longer_pin_than_the_server_allows(server: Server) -> None:
    """Refused in the client's words."""
    body = {"prompt": [300], "max_tokens": 1, "pin_ttl_s": 601}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "pin_ttl_s")
    assert error["message"] == "'pin_ttl_s' is 601.0; the limit is 0 to 600"
