"""One scripted kernel and one gateway for all tests that do not break them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.gateway.harness import Gateway, KernelThread, running_gateway


@pytest.fixture(scope="session")
def shared_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelThread]:
    """A scripted kernel that lives as long as the run."""
    with KernelThread(tmp_path_factory.mktemp("kernel")) as kernel:
        yield kernel


@pytest.fixture(scope="session")
def shared_gateway(
    shared_kernel: KernelThread, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A gateway that lives as long as the run."""
    with running_gateway(shared_kernel, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture
def kernel(shared_kernel: KernelThread) -> Iterator[KernelThread]:
    """The shared kernel, saying hello; at the end it must have no process left."""
    shared_kernel.reset()
    yield shared_kernel
    shared_kernel.wait_until_empty()


@pytest.fixture
def gateway(kernel: KernelThread, shared_gateway: Gateway) -> Gateway:
    """The shared gateway."""
    return shared_gateway


@pytest.fixture
def base_url(gateway: Gateway) -> str:
    """Where an OpenAI client finds the API."""
    return gateway.base_url


@pytest.fixture
def own_kernel(tmp_path: Path) -> Iterator[KernelThread]:
    """A kernel for one test only."""
    with KernelThread(tmp_path / "kernel") as kernel:
        yield kernel


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority of the tests' own."""
    return trustme.CA()


@pytest.fixture(scope="session")
def tls_options(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that serve a certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    return ["--tls-cert", str(certificate), "--tls-key", str(key)]


@pytest.fixture(scope="session")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """A client's side of TLS that knows the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
