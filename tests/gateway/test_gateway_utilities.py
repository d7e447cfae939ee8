"""The utility and admin routes: texts and tokens, requests and slots, load, drain."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shell.gateway.admin import REASONS
from shell.gateway.errors import ApiError
from shell.gateway.process_errors import explaining_processes
from syscalls.device import LoadModel, Sleep, UnloadModel
from syscalls.errno import Errno, SyscallError, invalid_parameter
from syscalls.memory import DropCache
from tests.gateway.harness import (
    PATIENCE_SECONDS,
    Gateway,
    KernelThread,
    hello,
    http_request,
    running_gateway,
    say_forever,
    say_nothing,
)
from tests.gateway.test_gateway_errors import CHAT, check_error
from tests.scripted_kernel import ASSISTANT, CONTEXT, END, USER, VOCAB_SIZE


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda t: "<|" not in t))
def test_a_text_comes_back(gateway: Gateway, text: str) -> None:
    """Tokens of a text are its bytes here, and decode to it, under both names."""
    for name in ("prompt", "content"):
        answer = gateway.post("/tokenize", {name: text}).json()
        assert answer["tokens"] == list(text.encode())
        assert answer["count"] == len(text.encode())
        assert answer["max_model_len"] == CONTEXT
    back = gateway.post("/detokenize", {"tokens": answer["tokens"]}).json()
    assert back == {"prompt": text, "content": text}


def test_a_conversation_is_rendered_as_chat_does(gateway: Gateway, kernel: KernelThread) -> None:
    """/tokenize, /apply-template and a chat completion agree on the prompt."""
    tokens = gateway.post("/tokenize", hello(return_token_strs=True)).json()
    assert tokens["tokens"] == [USER, *b"hi", END, ASSISTANT]
    assert tokens["token_strs"] == ["<|user|>", "h", "i", "<|end|>", "<|assistant|>"]
    rendered = gateway.post("/apply-template", hello()).json()
    assert rendered == {"prompt": "<|user|>hi<|end|><|assistant|>", "count": 5}
    gateway.post(CHAT, hello())
    assert kernel.kernel.spawned[-1].spawn.prompt == tuple(tokens["tokens"])


def test_bad_texts(gateway: Gateway) -> None:
    """Errors name the field."""
    check_error(gateway.post("/tokenize", {}), 400, "missing_required_parameter", "prompt")
    check_error(gateway.post("/tokenize", {"prompt": "a", "content": "b"}), 400, "invalid_value", "prompt")
    check_error(gateway.post("/tokenize", {"prompt": 5}), 400, "invalid_type", "prompt")
    check_error(gateway.post("/detokenize", {"tokens": [VOCAB_SIZE]}), 400, "invalid_value", "tokens")
    check_error(gateway.post("/detokenize", {}), 400, "missing_required_parameter", "tokens")
    check_error(gateway.get("/tokenizer_info?model=nobody"), 404, "model_not_found", "model")


def test_descriptions(gateway: Gateway) -> None:
    """/tokenizer_info, /props and /load say what is served and how busy it is."""
    info = gateway.get("/tokenizer_info").json()
    assert info["vocab_size"] == VOCAB_SIZE
    assert "assistant" in info["chat_template"]
    props = gateway.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == CONTEXT
    assert props["eos_token"] == "<|end|>"
    load = gateway.get("/load").json()
    assert load["server_load"] == 0
    assert load["is_draining"] is False


class Background:
    """A chat request in a thread."""

    def __init__(self, gateway: Gateway, request_id: str) -> None:
        self.responses: list[httpx.Response] = []
        headers = {"x-request-id": request_id}
        self.thread = threading.Thread(
            target=lambda: self.responses.append(gateway.post(CHAT, hello(n=2), headers=headers))
        )
        self.thread.start()

    def result(self) -> httpx.Response:
        """Wait for the answer."""
        self.thread.join()
        return self.responses[0]


@pytest.mark.parametrize("way", ["cancel", "delete", "abort", "pid"])
def test_a_request_is_listed_described_and_cancelled(
    gateway: Gateway, kernel: KernelThread, way: str
) -> None:
    """All of a request's processes are found by its id, or one by its pid; killing them ends it by name."""
    kernel.program = say_forever if way == "cancel" else say_nothing
    running = Background(gateway, f"mine-{way}")
    kernel.wait_until(lambda: len(kernel.kernel.processes) == 2)
    rows = gateway.get("/v1/requests").json()["data"]
    assert [row["id"] for row in rows] == [f"mine-{way}"] * 2
    assert rows[0]["priority"] == 0
    assert gateway.get("/load").json()["server_load"] == 1
    described = gateway.get(f"/v1/requests/mine-{way}").json()
    assert len(described["processes"]) == 2
    assert {"verdict", "timeline", "seconds"} <= described["processes"][0].keys()
    match way:
        case "cancel":
            response = gateway.post(f"/v1/requests/mine-{way}/cancel", {})
        case "delete":
            response = httpx.delete(f"{gateway.url}/v1/requests/mine-{way}", timeout=PATIENCE_SECONDS)
        case "abort":
            response = gateway.post("/abort_request", {"rid": f"mine-{way}"})
        case _:
            response = gateway.post(f"/v1/requests/{rows[0]['pid']}/cancel", {})
    assert response.status_code == 200
    assert response.json()["pids"] == [row["pid"] for row in rows][: 1 if way == "pid" else 2]
    check_error(running.result(), 500, "process_killed")
    kernel.wait_until(lambda: not kernel.kernel.processes)
    for path in (f"/v1/requests/mine-{way}", f"/v1/requests/{rows[0]['pid']}"):
        check_error(gateway.get(path), 404, "request_not_found")
        check_error(gateway.post(f"{path}/cancel", {}), 404, "request_not_found")


def test_slots_are_saved_restored_and_erased(gateway: Gateway, kernel: KernelThread) -> None:
    """A running process is saved; the image becomes another process; both are ended."""
    kernel.program = say_forever
    running = Background(gateway, "slotted")
    kernel.wait_until(lambda: len(kernel.kernel.processes) == 2)
    slot = gateway.get("/slots").json()[0]
    assert slot["is_processing"]
    assert slot["n_ctx"] == CONTEXT
    saved = gateway.post(f"/slots/{slot['id']}?action=save", {"filename": "kept"}).json()
    assert saved["filename"] == "kept"
    assert saved["n_saved"] == saved["n_tokens"] - 1
    body = {"filename": "kept", "overwrite": False}
    check_error(gateway.post(f"/slots/{slot['id']}?action=save", body), 400, "conflict")
    restored = gateway.post("/slots/0?action=restore", {"filename": "kept"}).json()
    assert restored["n_restored"] == saved["n_saved"]
    assert restored["id_slot"] not in [slot["id"], slot["id"] + 1]
    for pid in (slot["id"], restored["id_slot"]):  # the request ends its other process itself
        assert gateway.post(f"/slots/{pid}?action=erase", {}).json()["n_erased"] > 0
    running.result()


def test_bad_slots(gateway: Gateway) -> None:
    """What is not there or not known is named."""
    check_error(gateway.post("/slots/999999?action=erase", {}), 404, "request_not_found")
    check_error(gateway.post("/slots/1?action=restore", {"filename": "none"}), 404, "image_not_found")
    check_error(gateway.post("/slots/1?action=dance", {}), 400, "invalid_value", "action")
    check_error(gateway.post("/slots/x?action=erase", {}), 400, "invalid_value", "id")
    check_error(gateway.post(f"/slots/{'9' * 5000}?action=erase", {}), 400, "invalid_value", "id")
    check_error(gateway.post("/slots/1?action=save", {}), 400, "missing_required_parameter", "filename")


@pytest.mark.parametrize("path", REASONS)
def test_what_the_kernel_cannot_do_is_refused_by_name(gateway: Gateway, path: str) -> None:
    """No silent 200."""
    assert path in check_error(gateway.post(path, {}), 400, "unsupported_parameter")["message"]
    if path == "/lora-adapters":
        assert "no adapters" in check_error(gateway.get(path), 400, "unsupported_parameter")["message"]


def test_the_prefix_cache_is_dropped(gateway: Gateway, kernel: KernelThread) -> None:
    """The kernel is told; what vLLM would do beside it is refused unless it is not to be done."""
    path = "/reset_prefix_cache"
    assert gateway.post(path, {}).json() == {"num_dropped_pages": 5}
    assert any(isinstance(call, DropCache) for call in kernel.kernel.calls)
    kernel.kernel.calls.clear()
    wanted = "reset_running_requests"
    check_error(gateway.post(f"{path}?{wanted}=true", {}), 400, "unsupported_parameter", wanted)
    assert not any(isinstance(call, DropCache) for call in kernel.kernel.calls)
    assert gateway.post(f"{path}?{wanted}=false&reset_external=False", {}).status_code == 200


def test_devices_sleep_and_wake(own_kernel: KernelThread, tmp_path: Path) -> None:
    """On the level that was asked for; what vLLM would do beside it is refused."""
    with running_gateway(own_kernel, tmp_path / "gateway") as gateway:
        assert gateway.get("/is_sleeping").json() == {"is_sleeping": False}
        for query, level in (("", 1), ("?level=1&mode=keep", 1), ("?level=2", 2)):
            own_kernel.kernel.calls.clear()
            assert gateway.post(f"/sleep{query}", {}).json() == {"is_sleeping": True}
            assert Sleep(level) in own_kernel.kernel.calls
            assert gateway.get("/is_sleeping").json() == {"is_sleeping": True}
        check_error(gateway.post("/sleep?level=3", {}), 400, "invalid_value", "level")
        check_error(gateway.post("/sleep?mode=abort", {}), 400, "unsupported_parameter", "mode")
        check_error(gateway.post("/wake_up?tags=weights", {}), 400, "unsupported_parameter", "tags")
        assert gateway.get("/is_sleeping").json() == {"is_sleeping": True}
        assert gateway.post("/wake_up", {}).json() == {"is_sleeping": False}
        assert gateway.get("/is_sleeping").json() == {"is_sleeping": False}
        own_kernel.kernel.refusals[Sleep] = SyscallError(Errno.EBUSY, "device sim:0 is loading, not ready")
        check_error(gateway.post("/sleep", {}), 503, "model_loading")


def test_models_come_and_go(own_kernel: KernelThread, tmp_path: Path) -> None:
    """What was loaded serves at once, what was unloaded is not found, and refusals name the field."""
    with running_gateway(own_kernel, tmp_path / "gateway", "--alias", "nick=small") as gateway:
        answer = gateway.post("/models/load", {"model": "/models/small"})
        assert answer.json() == {"success": True, "model": "small", "device": "sim:1"}
        for name in ("small", "nick"):
            assert gateway.post("/v1/completions", {"model": name, "prompt": "a"}).status_code == 200
        answer = gateway.post("/models/unload", {"model": "nick", "force": True})
        assert answer.json() == {"success": True, "model": "small"}
        assert UnloadModel("small", True) in own_kernel.kernel.calls
        body = {"model": "small", "prompt": "a"}
        check_error(gateway.post("/v1/completions", body), 404, "model_not_found", "model")
        check_error(gateway.post("/models/unload", {"model": "small"}), 404, "model_not_found", "model")
        check_error(gateway.post("/models/load", {}), 400, "missing_required_parameter", "model")
        for refusal, code, param in (
            (invalid_parameter("model", "is '/x', which is no folder"), "invalid_value", "model"),
            (SyscallError(Errno.EEXIST, "one is served", parameter="name"), "conflict", "name"),
            (SyscallError(Errno.EBUSY, "no device is empty"), "conflict", None),
        ):
            own_kernel.kernel.refusals[LoadModel] = refusal
            check_error(gateway.post("/models/load", {"model": "/x"}), 400, code, param)
        own_kernel.kernel.refusals[UnloadModel] = SyscallError(Errno.EBUSY, "2 processes wait for input")
        check_error(gateway.post("/models/unload", {"model": "scripted"}), 400, "conflict")


def test_drain_reaches_the_kernel(own_kernel: KernelThread, tmp_path: Path) -> None:
    """With the time that was asked for; a wrong one is refused."""
    with running_gateway(own_kernel, tmp_path / "gateway") as gateway:
        check_error(gateway.post("/drain", {"grace_seconds": -1}), 400, "invalid_value", "grace_seconds")
        blank = httpx.post(f"{gateway.url}/drain", content=b"\n\n", timeout=PATIENCE_SECONDS)
        check_error(blank, 400, "invalid_json")  # there is a body, and it is none
        assert own_kernel.kernel.shutdown_grace is None
        answer = gateway.post("/drain", {"grace_seconds": 2.5})
        assert answer.json() == {"status": "draining", "grace_seconds": 2.5}
        assert own_kernel.kernel.shutdown_grace == 2.5


def test_admin_routes_are_for_administrators(tmp_path: Path) -> None:
    """A tenant's key opens requests of its own, not the server's."""
    with KernelThread(tmp_path / "kernel", {"key-of-alice": "alice"}) as kernel:
        with running_gateway(kernel, tmp_path / "gateway", wait=False) as gateway:
            kernel.wait_until(lambda: gateway.get("/health").status_code == 200)
            headers = {"authorization": "Bearer key-of-alice"}
            assert gateway.get("/v1/requests", headers=headers).json()["data"] == []
            for path in ("/drain", "/reset_prefix_cache", "/sleep", "/wake_up", "/models/load", *REASONS):
                check_error(gateway.post(path, {}, headers=headers), 403, "permission_denied")
            check_error(gateway.get("/is_sleeping", headers=headers), 403, "permission_denied")
            check_error(gateway.get("/slots"), 401, "invalid_api_key")


def test_clients_do_not_retry_on_a_full_disk() -> None:
    """An image that has no room now has none in a second."""
    with pytest.raises(ApiError) as caught, explaining_processes():
        raise SyscallError(Errno.ENOSPC, "7 MiB are needed, 3 are free")
    assert (caught.value.status, caught.value.headers) == (507, {"x-should-retry": "false"})


@pytest.mark.parametrize(("order", "nice"), [("high-first", -3), ("low-first", 3)])
def test_the_order_of_priorities_is_the_operator_s(
    own_kernel: KernelThread, tmp_path: Path, order: str, nice: int
) -> None:
    """Which sign is the important one is said at start; requests see their own number."""
    own_kernel.program = say_nothing
    with running_gateway(own_kernel, tmp_path / "g", "--priority-order", order) as gateway:
        with gateway.connect() as raw:
            raw.sendall(http_request("/v1/completions", {"prompt": "a", "priority": 3}))
            (process,) = own_kernel.wait_until(lambda: own_kernel.kernel.spawned)
            assert process.spawn.nice == nice
            assert [row["priority"] for row in gateway.get("/v1/requests").json()["data"]] == [3]
        own_kernel.wait_until(lambda: not own_kernel.kernel.processes)
