"""Who reaches the gateway, and how: TLS, addresses beyond loopback, web pages of other origins."""

from __future__ import annotations

import ssl
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from llmos.agreements import make_tenants
from llmos.config import ConfigError, listens_beyond_loopback, load_config
from llmos.gateway_options import gateway_options
from shell.gateway.config import parse_arguments
from tests.gateway.harness import PATIENCE_SECONDS, ROOT, Gateway, KernelThread, hello, running_gateway

CHAT = "/v1/chat/completions"
PAGE = "https://chat.example"


def test_https_with_the_real_client(
    own_kernel: KernelThread, trusting: ssl.SSLContext, tls_options: list[str], tmp_path: Path
) -> None:
    """Whole and streamed answers over TLS; a stranger to the authority, or plain HTTP, gets nothing."""
    with running_gateway(own_kernel, tmp_path / "g", *tls_options, wait=False) as gateway:
        assert gateway.url.startswith("https://127.0.0.1:")
        with httpx.Client(verify=trusting, timeout=PATIENCE_SECONDS) as http:
            own_kernel.wait_until(lambda: http.get(f"{gateway.url}/health/ready").status_code == 200)
            client = OpenAI(base_url=gateway.base_url, api_key="none", http_client=http, max_retries=0)
            messages = [{"role": "user", "content": "hi"}]
            whole = client.chat.completions.create(model="scripted", messages=messages)  # type: ignore[call-overload]
            stream = client.chat.completions.create(model="scripted", messages=messages, stream=True)  # type: ignore[call-overload]
            said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            assert said == whole.choices[0].message.content != ""
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{gateway.url}/health", timeout=PATIENCE_SECONDS)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{gateway.url.replace('https', 'http')}/health", timeout=PATIENCE_SECONDS)
        with httpx.Client(verify=trusting, timeout=PATIENCE_SECONDS) as http:
            assert http.get(f"{gateway.url}/health").status_code == 200  # the strangers hurt nobody


def test_a_certificate_that_cannot_be_used_is_told_at_start(tls_options: list[str]) -> None:
    """A missing file is one log line that names it, and exit status 1."""
    command = [sys.executable, "-m", "shell.gateway", "--listen", "127.0.0.1:0", "--log-format", "json"]
    wrong = [*tls_options[:3], "/nowhere/key.pem"]
    ended = subprocess.run(
        [*command, *wrong], capture_output=True, cwd=ROOT, timeout=PATIENCE_SECONDS, check=False
    )
    assert ended.returncode == 1
    assert b"/nowhere/key.pem" in ended.stderr
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize("half", [["--tls-cert", "a.pem"], ["--tls-key", "a.pem"]])
def test_half_a_pair_is_refused(half: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A certificate without its key, or a key alone, is a usage error."""
    with pytest.raises(SystemExit) as ended:
        parse_arguments(half)
    assert ended.value.code == 2
    assert "go together" in capsys.readouterr().err


def test_no_keys_beyond_loopback(own_kernel: KernelThread, tmp_path: Path) -> None:
    """Listening everywhere without keys serves only what is public, unless told that it is meant."""
    everywhere = ["--listen", "0.0.0.0:0"]
    with running_gateway(own_kernel, tmp_path / "a", *everywhere, wait=False) as gateway:
        url = gateway.url.replace("0.0.0.0", "127.0.0.1")
        own_kernel.wait_until(lambda: httpx.get(f"{url}/health", timeout=PATIENCE_SECONDS).status_code == 200)
        for path in ("/v1/models", "/metrics", "/v1/requests"):
            answer = httpx.get(url + path, headers={"authorization": "Bearer any"}, timeout=PATIENCE_SECONDS)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert "--insecure-no-keys" in answer.json()["error"]["message"]
        assert httpx.post(url + CHAT, json=hello(), timeout=PATIENCE_SECONDS).status_code == 401
        assert own_kernel.kernel.spawned == []
    with running_gateway(
        own_kernel, tmp_path / "b", *everywhere, "--insecure-no-keys", wait=False
    ) as gateway:
        url = gateway.url.replace("0.0.0.0", "127.0.0.1")
        own_kernel.wait_until(
            lambda: httpx.post(url + CHAT, json=hello(), timeout=PATIENCE_SECONDS).status_code == 200
        )


@pytest.mark.parametrize("listen", ["0.0.0.0:8000", "[::]:8000", "192.0.2.7:80", "host.example:80"])
async def test_boot_refuses_an_open_door(listen: str, tmp_path: Path) -> None:
    """Without keys the system does not start there; keys or the switch let it."""
    with pytest.raises(ConfigError, match="insecure_no_keys"):
        make_tenants(load_config(None, {"listen": listen}))
    make_tenants(load_config(None, {"listen": listen, "insecure_no_keys": True}))
    tenants = tmp_path / "tenants.toml"
    tenants.write_text(f'[tenant.alice]\nkeys_sha256 = ["{"0" * 64}"]\n')
    make_tenants(load_config(None, {"listen": listen, "tenants": str(tenants)}))


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.8.8.8:1", "localhost:80", "[::1]:80", ""])
async def test_boot_needs_no_keys_at_home(listen: str) -> None:
    """Loopback, or no gateway at all, needs none."""
    make_tenants(load_config(None, {"listen": listen}))


def test_configuration_reaches_the_gateway() -> None:
    """What the kernel passes on is what the gateway reads."""
    values = {"tls_cert": "c.pem", "tls_key": "k.pem", "insecure_no_keys": True, "cors_origins": f"{PAGE}, *"}
    values["alias"] = "gpt-x, e=minilm"
    config = parse_arguments(gateway_options(load_config(None, values), "/s"))
    assert (config.tls_cert, config.tls_key, config.insecure_no_keys) == ("c.pem", "k.pem", True)
    assert config.cors_origins == {PAGE, "*"}
    assert config.aliases == {"gpt-x": None, "e": "minilm"}
    for wrong in ("=x", "x=", "a,b,a=c"):
        with pytest.raises(ConfigError, match="alias has"):
            load_config(None, {"alias": wrong})
    with pytest.raises(ConfigError, match="go together"):
        load_config(None, {"tls_cert": "c.pem"})


@given(host=st.ip_addresses().filter(lambda address: "%" not in str(address)))
def test_both_sides_agree_on_loopback(host: IPv4Address | IPv6Address) -> None:
    """The kernel's check and the gateway's are the same for every address."""

    shown = f"[{host}]:80" if ":" in str(host) else f"{host}:80"
    expected = not host.is_loopback
    assert listens_beyond_loopback(shown) == expected
    assert parse_arguments(["--listen", shown]).is_open_door == expected


def test_pages_of_other_origins(tmp_path: Path) -> None:
    """A listed origin may call: preflights need no key, answers and refusals are marked; others are not."""
    preflight = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,x-stainless-os",
    }
    with (
        KernelThread(tmp_path / "kernel", {"key": "alice"}) as kernel,
        running_gateway(kernel, tmp_path / "g", "--cors-origin", PAGE, wait=False) as gateway,
    ):
        kernel.wait_until(lambda: gateway.get("/health").status_code == 200)
        answer = httpx.options(gateway.url + CHAT, headers=preflight, timeout=PATIENCE_SECONDS)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
        assert "POST" in answer.headers["access-control-allow-methods"]
        for headers, status in (({"authorization": "Bearer key"}, 200), ({}, 401)):
            answer = gateway.post(CHAT, hello(stream=True), headers={"origin": PAGE, **headers})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
            assert answer.headers["vary"] == "Origin"
        for origin in ("https://evil.example", "null", ""):
            answer = httpx.options(
                gateway.url + CHAT, headers={**preflight, "origin": origin}, timeout=PATIENCE_SECONDS
            )
            assert answer.status_code == 405
            assert not [name for name in answer.headers if name.startswith("access-control")]


def test_no_cors_unless_asked(gateway: Gateway) -> None:
    """By default an origin changes nothing."""

    answer = gateway.get("/health", headers={"origin": PAGE})
    assert not [name for name in answer.headers if name.startswith("access-control")]
