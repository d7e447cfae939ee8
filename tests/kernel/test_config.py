"""The configuration: what is wrong is named with its key, its value and its limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos import loads
from llmos.config import Config, ConfigError, load_config, parse_weights, processors_of


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_running": 0}, "max_running is 0: expected `int` >= 1"),
        ({"max_running": "many"}, "max_running is 'many': expected `int`, got `str`"),
        ({"weights": "int3"}, "weights is 'int3': invalid enum value 'int3'"),
        ({"max_divergence": -1.0}, "max_divergence is -1.0: expected `float` >= 0.0"),
        ({"colour": "blue"}, "unknown key `colour`"),
        ({"frame_kib": 6}, "frame_kib is 6; it must be a multiple of 4"),
        ({"tenant_weights": "a=2,b"}, "tenant_weights has 'b'; it must be TENANT=WEIGHT, 0.001 to 1000"),
        ({"tenant_weights": "a=0"}, "tenant_weights has 'a=0'"),
        ({"swap_mib": -1}, "swap_mib is -1: expected `int` >= 0"),
        ({"listen": "8000"}, "listen is '8000'; it must be HOST:PORT"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, object], message: str) -> None:
    """The key, the value and what would do."""
    with pytest.raises(ConfigError) as refusal:
        load_config(None, values)
    assert message in str(refusal.value)


def test_the_command_line_lies_over_the_file(tmp_path: Path) -> None:
    """Keys of the file may have hyphens; what the command line says wins."""
    file = tmp_path / "llmos.toml"
    file.write_text('max-running = 3\nweights = "w8a8"\n')
    config = load_config(str(file), {"weights": "w4a8"})
    assert (config.max_running, config.weights) == (3, "w4a8")
    for text, part in (("max_running = ", "is not TOML"), ("max_running = 0", "max_running is 0")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=part):
            load_config(str(file), {})
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(str(tmp_path / "none"), {})


@given(num_usable=st.integers(1, 40), devices=st.integers(1, 8), threads=st.none() | st.integers(1, 8))
def test_pinned_devices_share_no_processor(num_usable: int, devices: int, threads: int | None) -> None:
    """Each gets as many as it has threads, of those that may be used; or all is refused with numbers."""
    usable = {3 * i for i in range(num_usable)}
    config = Config(pin=True, devices=devices, threads=threads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: usable)
        per_device = threads or max(1, num_usable // devices)
        if per_device * devices > num_usable:
            with pytest.raises(ConfigError, match=f"processors; this process may use {num_usable}"):
                processors_of(config, 0)
            return
        given = [processors_of(config, index) for index in range(devices)]
    taken = [processor for processors in given for processor in processors]
    assert all(len(processors) == per_device for processors in given)
    assert len(set(taken)) == len(taken)
    assert set(taken) <= usable


def test_nothing_is_pinned_unless_told() -> None:
    """The default leaves it to the operating system."""
    assert processors_of(Config(devices=2, threads=64), 1) == ()


def test_weights_are_read() -> None:
    """Tenants may hold an equals sign; spaces do not matter."""
    assert parse_weights("uid:1000=2, key=x=0.5") == {"uid:1000": 2.0, "key=x": 0.5}
    assert parse_weights("") == {}


@pytest.mark.parametrize(
    ("values", "available_gib", "expected"),
    [
        ({}, 16, (2 << 30, 0, None)),
        ({"devices": 4}, 16, (512 << 20, 0, None)),
        ({}, 512, (4 << 30, 0, None)),  # as much as one device takes unless it is told to
        ({"swap_mib": 0}, 16, (0, 0, None)),
        ({"swap_mib": 9000, "swap_file_mib": 7, "swap_folder": "/swap"}, 16, (9000 << 20, 7 << 20, "/swap")),
    ],
)
def test_memory_to_swap_to(
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, object],
    available_gib: int,
    expected: tuple[int, int, str | None],
) -> None:
    """A share of what is available, or what is said; drivers are told in bytes."""
    monkeypatch.setattr(loads, "available_memory_bytes", lambda: available_gib << 30)
    load = loads.load_message(load_config(None, values), "/model")
    assert (load.host_bytes, load.disk_bytes, load.disk_folder) == expected
