"""The tenants file, and keys in the environment: who may use the kernel, by key or by user, and how much."""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from llmos.config import ConfigError
from llmos.params import KEYS_VARIABLE
from syscalls.tenant import Limits

MAX_KEYS = 2048  # each may come to hold a session of the gateway
KEY_PREFIX = "sk-llmos-"
KEY_BYTES = 32

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")  # no colon: `uid:N` is who is not in the file
_DIGEST = re.compile(r"[0-9a-f]{64}")

Count = Annotated[int, Meta(ge=1)]
PerMinute = Annotated[float, Meta(ge=1, le=1e12)]


class LimitsEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table `[default]`: limits of those who are not in the file, and of those who do not set their own."""

    max_running: Count | None = None
    max_waiting: Count | None = None
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    max_resident_mib: Count | None = None
    min_nice: Annotated[int, Meta(ge=-20, le=19)] | None = None
    token_budget: Count | None = None

    def limits(self, default: LimitsEntry) -> Limits:
        """What is set here, else in `default`."""
        chosen = {
            name: mine if (mine := getattr(self, name)) is not None else getattr(default, name)
            for name in LimitsEntry.__struct_fields__
        }
        mebibytes = chosen.pop("max_resident_mib")
        return Limits(**chosen, max_resident_bytes=None if mebibytes is None else mebibytes << 20)


class TenantEntry(LimitsEntry, frozen=True, kw_only=True):
    """Table `[tenant.NAME]`."""

    keys_sha256: tuple[str, ...] = ()  # hashes of keys, in hex; the keys themselves are nowhere
    uids: tuple[Annotated[int, Meta(ge=0)], ...] = ()  # users of this machine who may open the socket
    admin: bool = False  # who comes with one of its keys is an administrator
    weight: Annotated[float, Meta(ge=1e-3, le=1e3)] = 1.0  # of its share under policy = fair


class TenantsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    default: LimitsEntry = LimitsEntry()
    tenant: dict[str, TenantEntry] = {}


def read_tenants(path: str | None) -> TenantsFile:
    """Read and check the file; without a path nobody is named and nothing is limited.

    Raises:
        ConfigError: it cannot be read, or a key or value is wrong; the message names it.
    """
    if path is None:
        return TenantsFile()
    try:
        file = msgspec.toml.decode(Path(path).read_bytes(), type=TenantsFile)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    if (problem := _find_problem(file)) is not None:
        raise ConfigError(f"{path}: {problem}")
    return file


def add_keys(text: str, file: TenantsFile) -> TenantsFile:
    """Add the keys of the environment to those of the file.

    Args:
        text: NAME=KEY, parted by commas or blanks; a name that is not in the file has the default's limits.
        file: without them.

    Raises:
        ConfigError: an entry is wrong, or somebody has the key already. No key is repeated.
    """
    tenants = dict(file.tenant)
    for number, entry in enumerate(re.findall(r"[^,\s]+", text), 1):
        name, _, key = entry.partition("=")
        if not key:
            raise ConfigError(f"{KEYS_VARIABLE}: entry {number} is not NAME=KEY")
        known = tenants.get(name, TenantEntry())
        digests = (*known.keys_sha256, hashlib.sha256(key.encode()).hexdigest())
        tenants[name] = msgspec.structs.replace(known, keys_sha256=digests)
    file = msgspec.structs.replace(file, tenant=tenants)
    if text and (problem := _find_problem(file)) is not None:
        raise ConfigError(f"{KEYS_VARIABLE}: {problem}")
    return file


def _find_problem(file: TenantsFile) -> str | None:
    owners: dict[str | int, str] = {}  # of keys and users
    for name, entry in file.tenant.items():
        if not _NAME.fullmatch(name):
            return f"tenant.{name}: a name has 1 to 64 letters, digits and . _ @ -, a letter or digit first"
        for digest in entry.keys_sha256:
            if not _DIGEST.fullmatch(digest):  # it may be a key, so it is not repeated
                return f"tenant.{name}: keys_sha256 has an entry that is not 64 hex digits (see `llmos key`)"
        mine: tuple[str | int, ...] = (*entry.keys_sha256, *entry.uids)
        for owned in mine:
            if owned in owners:
                what = f"user {owned}" if isinstance(owned, int) else f"the key {owned[:8]}…"
                return f"tenant.{name}: {what} is there twice, first in tenant.{owners[owned]}"
            owners[owned] = name
    num_keys = sum(isinstance(owned, str) for owned in owners)
    return f"{num_keys} keys; the limit is {MAX_KEYS}" if num_keys > MAX_KEYS else None


def make_key() -> tuple[str, str]:
    """Make a fresh key. Returns it, and its SHA-256 in hex: 256 random bits need no slow hash."""
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    return key, hashlib.sha256(key.encode()).hexdigest()
