"""What if llmos is started wrongly, twice, interrupted, or parts of it are killed?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from drivers.builtin import base_path
from llmos.bench.server import Server, running_server
from syscalls.sync import SyncClient
from tests.system.leaks import assert_no_leak, count, counted_server
from tests.system.ports import find_free_port

PATIENCE_SECONDS = 60.0  # for what must happen at once, on a busy machine
UP = [sys.executable, "-m", "llmos.cli", "up"]
SIM = ["--device", "sim"]


def llmos(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `llmos …` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "llmos.cli", *arguments],
        capture_output=True, text=True, timeout=120, check=False, **options,
    )  # fmt: skip


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that comes true by itself."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("toml", "names"),
    [
        ("max_runing = 3", "max_runing"),
        ("max_running = 0", "max_running"),
        ("weights = 'int3'", "weights"),
        ("devices = 'two'", "devices"),
        ("listen = 'here'", "listen"),
        ("frame_kib = 5", "frame_kib"),
        ("= 3", "TOML"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(tmp_path: Path, toml: str, names: str) -> None:
    """A wrong key or value is exit code 2 and a message that names it."""
    (tmp_path / "llmos.toml").write_text(toml)
    result = llmos("up", "--config", str(tmp_path / "llmos.toml"))
    assert result.returncode == 2
    assert names in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("/no/such/folder", "/no/such/folder"),
        ("nonsense", "nonsense"),
        ("no-such-owner/no-such-model", "hub id"),
    ],
)
def test_a_model_that_is_not_there(tmp_path: Path, model: str, names: str) -> None:
    """A model that cannot be had is named, and nothing is left running."""
    result = llmos("up", *SIM, "--listen", "", "--socket", str(tmp_path / "s"), "--model", model)
    assert result.returncode == 1
    assert names in result.stderr
    assert "Traceback" not in result.stderr


def test_a_broken_model_is_refused(tmp_path: Path) -> None:
    """A truncated weights file is refused with its name, nothing half-loaded, nothing left running."""
    model = tmp_path / "broken"
    model.mkdir()
    for file in base_path().iterdir():
        if file.is_file():
            data = file.read_bytes()
            (model / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    result = llmos(
        "up", "--device", "cpu", "--listen", "", "--socket", str(tmp_path / "s"), "--model", str(model)
    )
    assert result.returncode == 1
    assert "model.safetensors" in result.stderr
    assert "Traceback" not in result.stderr


def test_two_kernels_on_one_socket(tmp_path: Path) -> None:
    """The second one is refused by the socket's name; the first does not notice."""
    with counted_server(*SIM, gateway=False) as server:
        result = llmos("up", *SIM, "--listen", "", "--socket", server.socket_path)
        assert result.returncode == 1
        assert server.socket_path in result.stderr
        with SyncClient(server.socket_path) as client:
            client.ping()


@contextmanager
def started(socket_path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A server whose ready line is out; killed on the way out where the test has not ended it."""
    process = subprocess.Popen(
        [*UP, "--socket", str(socket_path), *options],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("llmos ready")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_program_is_told_when_it_serves(tmp_path: Path) -> None:
    """--ready-fd takes one line of JSON that says where to reach what, and is closed behind it."""
    reading, writing = os.pipe()
    options = [*SIM, "--socket", str(tmp_path / "s"), "--listen", "127.0.0.1:0", "--ready-fd", str(writing)]
    process = subprocess.Popen([*UP, *options], stdout=subprocess.DEVNULL, pass_fds=[writing])
    try:
        os.close(writing)
        with open(reading, "rb") as lines:
            (line,) = lines.read().splitlines()  # to the end of the file, while the server lives
        ready = json.loads(line)
        assert ready["url"].startswith("http://127.0.0.1:")
        assert (ready["socket_path"], ready["devices"]) == (str(tmp_path / "s"), ["sim:0"])
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def test_a_ready_line_that_nobody_could_read_is_refused(tmp_path: Path) -> None:
    """A descriptor that is not open is a wrong option, and nothing boots."""
    result = subprocess.run(
        [*UP, *SIM, "--socket", str(tmp_path / "s"), "--ready-fd", "77"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert "ready_fd is 77" in result.stderr


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains(tmp_path: Path, sign: signal.Signals) -> None:
    """Ctrl-C lets running processes finish, refuses new ones, and leaves no socket and no child."""
    with (
        started(tmp_path / "s", *SIM, "--listen", "127.0.0.1:0") as process,
        SyncClient(tmp_path / "s") as client,
    ):
        (pid,) = client.spawn((5, 6, 7), max_tokens=100, ignore_eos=True).pids
        client.read(pid)
        os.kill(process.pid, sign)
        outputs = [output for output in client.stream(pid)]
        assert sum(len(output.tokens) for output in outputs) == 100
        assert process.wait(PATIENCE_SECONDS) == 0
    assert not (tmp_path / "s").exists()
    children = subprocess.run(
        ["pgrep", "-f", str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert children.stdout == ""


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """Twice Ctrl-C ends a server whose processes would run on for longer than anybody waits here."""
    options = (*SIM, "--sim-step-ms", "1000", "--shutdown-grace-seconds", "600", "--listen", "")
    with started(tmp_path / "s", *options) as process, SyncClient(tmp_path / "s") as client:
        client.spawn((5, 6, 7), max_tokens=200, ignore_eos=True)
        os.kill(process.pid, signal.SIGINT)
        wait_until(lambda: client.statistics().draining)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        process.wait(PATIENCE_SECONDS)


def test_down(tmp_path: Path) -> None:
    """`llmos down` drains the server and returns when it is gone; without one it exits with code 3."""
    with started(tmp_path / "s", *SIM, "--listen", "") as process:
        result = llmos("down", "--socket", str(tmp_path / "s"))
        assert (result.returncode, result.stdout) == (0, "llmos is down\n")
        assert process.wait(PATIENCE_SECONDS) == 0
    result = llmos("down", "--socket", str(tmp_path / "s"))
    assert result.returncode == 3
    assert str(tmp_path / "s") in result.stderr


def test_the_gateway_is_killed(tmp_path: Path) -> None:
    """kill -9 of the gateway: the kernel starts it again, and processes of other sessions live on."""
    with running_server(*SIM) as server, SyncClient(server.socket_path) as client:
        (pid,) = client.spawn((5, 6, 7), max_tokens=200, ignore_eos=True).pids
        found = subprocess.run(
            ["pgrep", "-f", f"shell.gateway.*{server.socket_path}"],
            capture_output=True,
            text=True,
            check=True,
        )
        os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
        tokens = [token for output in client.stream(pid) for token in output.tokens]
        assert len(tokens) == 200
        assert any("gateway" in event.subsystem for event in follow(client, "gateway"))
        wait_until(lambda: is_served(server.url))  # the port is the same


def is_served(url: str) -> bool:
    """Does a gateway answer there?"""
    try:
        return httpx.get(f"{url}/health", timeout=PATIENCE_SECONDS).status_code == 200
    except httpx.TransportError:
        return False


def follow(client: SyncClient, subsystem: str) -> list:
    """Events of a subsystem, waiting until there is one."""
    for events in client.follow_events():
        if found := [event for event in events if event.subsystem == subsystem]:
            return found
    return []


def test_the_kernel_is_killed(tmp_path: Path) -> None:
    """kill -9 of the kernel: driver and gateway end by themselves; the next kernel takes socket and port."""
    options = ("--device", "cpu", "--threads", "1", "--pool-mib", "64")
    listen = ("--listen", f"127.0.0.1:{find_free_port()}")
    with started(tmp_path / "s", *options, *listen) as process:
        with SyncClient(tmp_path / "s") as client:
            driver = client.devices()[0].driver_pid
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(driver))
    wait_until(lambda: not find(f"shell.gateway.*{tmp_path / 's'}"))
    with started(tmp_path / "s", *SIM, *listen), SyncClient(tmp_path / "s") as client:
        client.ping()


def is_alive(os_pid: int | None) -> bool:
    """Is there such an operating-system process?"""
    return os_pid is not None and Path(f"/proc/{os_pid}").exists()


def find(pattern: str) -> list[int]:
    """Operating-system processes whose command line matches."""
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def test_doctor() -> None:
    """`llmos doctor` names each device and library, and says why one is not usable."""
    result = llmos("doctor")
    assert result.returncode == 0, result.stdout
    assert "device cpu" in result.stdout
    assert "device cuda" in result.stdout


@pytest.fixture(scope="module")
def small() -> Server:
    """A simulated server with the gateway, for lives and deaths of clients."""
    with running_server(*SIM) as server:
        yield server


def test_a_client_process_is_killed(small: Server) -> None:
    """kill -9 of a client ends its processes and its session; nothing is left."""
    before = count(small)
    code = (
        "from syscalls.sync import SyncClient; import sys, time\n"
        f"client = SyncClient({small.socket_path!r})\n"
        "client.spawn((5, 6, 7), max_tokens=400, ignore_eos=True, num_samples=4)\n"
        "print('up', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    assert count(small).num_processes == 4
    child.kill()
    child.wait()
    child.stdout.close()
    assert_no_leak(small, before)


def test_many_connects(small: Server) -> None:
    """A thousand sessions come and go; none leaves anything."""
    before = count(small)
    for _ in range(1000):
        with SyncClient(small.socket_path) as client:
            client.ping()
    assert_no_leak(small, before)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`llmos doctor | head -1` prints a line and no traceback."""
    command = f"{sys.executable} -m llmos.cli doctor | head -1"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_pinned_device_keeps_to_its_processors(num_threads: int) -> None:
    """With `--pin`, each computing thread has a processor of its own, and none leaves the device's."""
    usable = sorted(os.sched_getaffinity(0))[:num_threads]
    if len(usable) < num_threads:
        pytest.skip(f"{num_threads} processors are needed")
    with (
        running_server("--device", "cpu", "--threads", str(num_threads), "--pin", gateway=False) as server,
        SyncClient(server.socket_path) as client,
    ):
        (device,) = client.devices()
        tasks = [int(task.name) for task in Path(f"/proc/{device.driver_pid}/task").iterdir()]
        assert device.driver_pid is not None
        places = {}
        for task in tasks:
            with suppress(ProcessLookupError):  # ended meanwhile
                places[task] = sorted(os.sched_getaffinity(task))
        assert places[device.driver_pid] == usable[:1]
        assert all(set(place) <= set(usable) for place in places.values())
        assert [place for place in places.values() if place == usable[-1:]]


def test_models_come_and_go() -> None:
    """A second model beside the first, then in its place: the same tokens each time, and nothing is left."""
    options = ("--device", "cpu", "--threads", "1", "--pool-mib", "32", "--swap-mib", "8")
    with running_server(*options, gateway=False) as server, SyncClient(server.socket_path) as client:

        def tokens(model: str | None) -> list[int]:
            spawned = client.spawn(range(300, 340), max_tokens=20, model=model, auto_reap=True)
            return [token for output in client.stream(spawned.pids[0]) for token in output.tokens]

        expected = tokens(None)
        assert client.load_model("builtin", "second").device == "cpu:1"
        assert tokens("second") == tokens("llmos-base") == expected
        client.unload_model("second")
        before = client.statistics()
        client.load_model(str(base_path()), "third")
        client.unload_model("llmos-base")
        assert [(device.name, device.state) for device in client.devices()] == [
            ("cpu:0", "empty"),
            ("cpu:1", "ready"),
        ]
        assert tokens(None) == expected
        client.load_model("builtin")
        client.unload_model("third")
        after = client.statistics()
        assert (after.num_tasks, after.num_open_files) == (before.num_tasks, before.num_open_files)
        assert tokens(None) == expected
