"""The tenants file: what it says, and that whatever is wrong is named."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from llmos.cli import main
from llmos.config import ConfigError
from llmos.tenants_file import TenantEntry, TenantsFile, add_keys, make_key, read_tenants
from syscalls.tenant import Limits

DIGEST = "ab" * 32
ROOT = Path(__file__).parents[2]


def read(folder: Path, text: str) -> TenantsFile:
    """Read a file with this text."""
    path = folder / "tenants.toml"
    path.write_text(text)
    return read_tenants(str(path))


def test_limits_fall_back_on_the_default(tmp_path: Path) -> None:
    """What a tenant does not set is the default's; mebibytes become bytes."""
    file = read(
        tmp_path,
        "[default]\nmax_running = 4\ntokens_per_minute = 1000\n"
        "[tenant.alice]\nuids = [1000]\nweight = 0.5\nmax_running = 9\nmax_resident_mib = 3\n[tenant.bob]\n",
    )
    alice, bob = (file.tenant[name].limits(file.default) for name in ("alice", "bob"))
    assert alice == Limits(max_running=9, tokens_per_minute=1000, max_resident_bytes=3 << 20)
    assert bob == file.default.limits(file.default) == Limits(max_running=4, tokens_per_minute=1000)
    assert (file.tenant["alice"].weight, file.tenant["alice"].uids) == (0.5, (1000,))
    assert read_tenants(None) == TenantsFile()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tenant", "is not TOML"),
        ("[tenants.a]", "unknown field `tenants`"),
        ("[tenant.a]\nmax_runing = 2", "unknown field `max_runing`"),
        ("[tenant.a]\nmax_running = 0", "max_running"),
        ("[tenant.a]\nrequests_per_minute = 0.5", "requests_per_minute"),
        ("[tenant.a]\ntokens_per_minute = inf", "tokens_per_minute"),
        ("[tenant.a]\nweight = 0", "weight"),
        ("[default]\nuids = [1]", "unknown field `uids`"),
        ('[tenant."uid:0"]', "tenant.uid:0: a name has"),
        (
            '[tenant.a]\nkeys_sha256 = ["sk-llmos-secret"]',
            "tenant.a: keys_sha256 has an entry that is not 64",
        ),
        (
            f'[tenant.a]\nkeys_sha256 = ["{DIGEST}"]\n[tenant.b]\nkeys_sha256 = ["{DIGEST}"]',
            "first in tenant.a",
        ),
        ("[tenant.a]\nuids = [5]\n[tenant.b]\nuids = [5]", "tenant.b: user 5 is there twice"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    """The file, the table and the key; never a secret."""
    with pytest.raises(ConfigError, match=r"tenants\.toml") as refusal:
        read(tmp_path, text)
    assert message in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_keys_of_the_environment(tmp_path: Path) -> None:
    """They join those of the file, or make a tenant of the default's limits."""
    file = read(
        tmp_path, f'[default]\nmax_running = 4\n[tenant.a]\nkeys_sha256 = ["{DIGEST}"]\nadmin = true\n'
    )
    file = add_keys(" a=sk-one, b=sk-two\nb=sk==three ", file)
    one, two, three = (hashlib.sha256(key.encode()).hexdigest() for key in ("sk-one", "sk-two", "sk==three"))
    assert file.tenant["a"] == TenantEntry(keys_sha256=(DIGEST, one), admin=True)
    assert file.tenant["b"] == TenantEntry(keys_sha256=(two, three))
    assert file.tenant["b"].limits(file.default) == Limits(max_running=4)
    assert add_keys("", file) == file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("secret", "entry 1 is not NAME=KEY"),
        ("a=k,b=", "entry 2 is not NAME=KEY"),
        ("a:b=secret", "tenant.a:b: a name has"),
        ("a=secret b=secret", "tenant.b: the key .* is there twice, first in tenant.a"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(text: str, message: str) -> None:
    """By place or tenant; never the secret."""
    with pytest.raises(ConfigError, match=f"LLMOS_KEYS: {message}") as refusal:
        add_keys(text, TenantsFile())
    assert "secret" not in str(refusal.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With the operating system's reason."""
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml: No such file"):
        read_tenants(str(tmp_path / "none.toml"))


def test_a_file_that_is_wrong_is_a_usage_error(tmp_path: Path) -> None:
    """`llmos up` ends with 2 before anything is loaded."""
    path = tmp_path / "tenants.toml"
    path.write_text("[tenant.a]\nweigth = 1")
    command = [sys.executable, "-m", "llmos.cli", "up", "--device", "sim", "--listen", ""]
    command += ["--socket", str(tmp_path / "llmos.sock"), "--tenants", str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert "weigth" in result.stderr


def test_a_key_and_its_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `llmos key` prints is a tenants file as it stands, and the key is in none of its values."""
    assert main(["key", "alice"]) == 0
    text = capsys.readouterr().out
    key = text.splitlines()[0].rpartition(" ")[2]
    file = read(tmp_path, text)
    assert file.tenant["alice"].keys_sha256 == (hashlib.sha256(key.encode()).hexdigest(),)
    assert key not in str(msgspec.to_builtins(file))
    assert make_key()[0] != make_key()[0]
