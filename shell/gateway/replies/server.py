"""What the server says of itself and of its models."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from shell.gateway.replies.common import Count


class ModelMeta(msgspec.Struct, forbid_unknown_fields=True):
    """More about a model."""

    vocab_size: int
    num_parameters: int
    dtype: str
    hash: str
    ready: bool


class ModelObject(msgspec.Struct, forbid_unknown_fields=True):
    """A model. `max_model_len` is the context that can be used."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    meta: ModelMeta


class ModelObjects(msgspec.Struct, forbid_unknown_fields=True):
    """What is served, the default first."""

    object: Literal["list"]
    data: list[ModelObject]


class HealthReport(msgspec.Struct, forbid_unknown_fields=True):
    """The kernel is alive."""

    status: Literal["ok"]


class ReadinessReport(msgspec.Struct, forbid_unknown_fields=True):
    """Models can serve."""

    status: Literal["ready"]
    models: list[str]


class VersionReport(msgspec.Struct, forbid_unknown_fields=True):
    """Versions. `kernel` is null while there is none."""

    version: str
    kernel: str | None


class LoadReport(msgspec.Struct, forbid_unknown_fields=True):
    """How busy the server is. `kv_usage` is a fraction."""

    server_load: Count
    max_in_flight: Count
    is_draining: bool
    num_running: Count
    num_waiting: Count
    num_processes: Count
    kv_usage: float
    num_cached_frames: Count


class ServerProps(msgspec.Struct, forbid_unknown_fields=True):
    """llama.cpp's description of a server."""

    default_generation_settings: dict[str, Any]
    total_slots: int
    model_alias: str
    model_path: str
    chat_template: str
    bos_token: str
    eos_token: str
    modalities: dict[str, bool]
    build_info: str
    is_sleeping: bool


class TokenizedText(msgspec.Struct, forbid_unknown_fields=True):
    """A text as tokens. `token_strs` when they were asked for."""

    tokens: list[int]
    count: Count
    max_model_len: int
    token_strs: list[str | None] | None


class DetokenizedText(msgspec.Struct, forbid_unknown_fields=True):
    """Tokens as a text, under vLLM's name and llama.cpp's."""

    prompt: str
    content: str


class RenderedConversation(msgspec.Struct, forbid_unknown_fields=True):
    """A conversation as the model is given it."""

    prompt: str
    count: Count


class TokenizerReport(msgspec.Struct, forbid_unknown_fields=True):
    """A model's text side. `chat_template` is null when it has none."""

    model: str
    vocab_size: int
    max_model_len: int
    special_tokens: dict[str, str]
    eos_token_ids: list[int]
    chat_template: str | None


class DrainReport(msgspec.Struct, forbid_unknown_fields=True):
    """The server has begun to stop."""

    status: Literal["draining"]
    grace_seconds: float


class CacheReport(msgspec.Struct, forbid_unknown_fields=True):
    """Pages of the prefix cache were given up."""

    num_dropped_pages: Count


class SleepReport(msgspec.Struct, forbid_unknown_fields=True):
    """Whether all devices sleep."""

    is_sleeping: bool


class ModelLoadReport(msgspec.Struct, forbid_unknown_fields=True):
    """A model that serves now."""

    success: Literal[True]
    model: str
    device: str


class ModelUnloadReport(msgspec.Struct, forbid_unknown_fields=True):
    """A model that is gone."""

    success: Literal[True]
    model: str
