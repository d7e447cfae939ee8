"""The served models with their text side, found by the name a client asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import msgspec
import structlog
import trio

from shell.gateway.errors import ApiError, invalid, model_not_found, unavailable, unsupported
from shell.gateway.kernel_link import KernelLink
from syscalls.system import Model
from syscalls.text.tokenizer import TextModel

RETRY_SECONDS = 10.0  # before a tokenizer that could not be read is tried again
SAMPLING_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

log = structlog.get_logger("gateway.models")


@attrs.frozen(kw_only=True, eq=False)
class ServedModel:
    """A model as one request sees it."""

    name: str  # the name asked for: responses echo it
    info: Model
    text: TextModel
    sampling_defaults: dict[str, float]  # from generation_config.json

    @property
    def fingerprint(self) -> str:
        """The `system_fingerprint` of responses."""
        given = self.info.fingerprint or self.info.hash[:12]
        return given if given.startswith("fp") else f"fp_{given}"


def read_sampling_defaults(folder: Path) -> dict[str, float]:
    """Read the sampling values of generation_config.json; {} when there is none or it does not parse."""
    try:
        found: dict[str, Any] = msgspec.json.decode(
            (folder / "generation_config.json").read_bytes(), type=dict
        )
    except (OSError, msgspec.MsgspecError):
        return {}
    return {
        name: value
        for name in SAMPLING_NAMES
        if isinstance(value := found.get(name), int | float) and not isinstance(value, bool)
    }


def _defaults_for(models: Sequence[Model], *, embeds: bool, pairs: bool) -> tuple[Model, ...]:
    """Which models a request without a name may mean: for vectors the encoder, where there is one."""
    if not embeds:
        return tuple(model for model in models if model.generates)
    able = [model for model in models if model.embedding is not None]
    if not pairs:
        able = [model for model in able if not (model.embedding and model.embedding.scores_pairs)]
    return tuple(model for model in able if not model.generates) or tuple(able) or tuple(models)


@attrs.define(eq=False)
class Catalog:
    """Finds models by name and opens each one's tokenizer once, in a thread."""

    link: KernelLink
    aliases: Mapping[str, str | None] = attrs.field(factory=dict)  # see GatewayConfig
    load_wait: float = 0.0  # seconds that `resolve` waits for a model that is not ready
    _opened: dict[tuple[str, str], tuple[TextModel, dict[str, float]]] = attrs.field(factory=dict)
    _lock: trio.Lock = attrs.field(factory=trio.Lock)

    def _find(self, name: str | None, embeds: bool | None = None, pairs: bool = False) -> Model | None:
        models = self.link.models
        if name is None and embeds is not None:
            models = _defaults_for(models, embeds=embeds, pairs=pairs)
        if name is None and len(models) > 1:
            raise invalid("missing_required_parameter", "Missing required parameter: 'model'.", "model")
        found = next((model for model in models if name is None or model.name == name), None)
        return self.find_alias(name) if found is None and name is not None else found

    def find_alias(self, name: str) -> Model | None:
        """Return the model that an operator gave another name; None: there is none."""
        if name not in self.aliases:
            return None
        wanted = self.aliases[name]
        return next((model for model in self.link.models if wanted in (None, model.name)), None)

    async def find_info(self, name: str | None, embeds: bool | None = None, pairs: bool = False) -> Model:
        """Return the kernel's description of a model.

        Without a name, it is the one for vectors if `embeds` (with `pairs`, perhaps for scores), for text if
        not, for anything if that is None.

        Raises:
            ApiError: 404 `model_not_found`; 503 `model_loading` while it is being loaded, or there is none at
                all, or no kernel; 400 when no name was given and there are several.
        """
        _ = self.link.client  # no kernel is another answer than no model
        model = self._find(name, embeds, pairs)
        if model is None or not model.ready:  # it may have changed since the kernel last told
            await self.link.refresh()
            model = self._find(name, embeds, pairs)
        if model is not None:
            return model
        if name is None or not self.link.models:
            raise unavailable("model_loading", "No model is loaded yet.")
        if name in self.link.loading or self.aliases.get(name) in self.link.loading:
            raise unavailable("model_loading", f"The model `{name}` is still loading.")
        raise model_not_found(name)

    async def resolve(self, name: str | None, *, embeds: bool = False, pairs: bool = False) -> ServedModel:
        """Return a model that is ready to make text, or vectors, or those or scores of pairs.

        One that loads is waited for as long as is set.

        Raises:
            ApiError: as `find_info`; 400 `unsupported_parameter` when it cannot do that; 503 `model_loading`.
        """
        find = partial(self._resolve, name, embeds, pairs)
        if self.load_wait > 0:
            with trio.move_on_after(self.load_wait):
                while True:
                    changed = self.link.models_changed
                    try:
                        return await find()
                    except ApiError as error:
                        if error.code != "model_loading":
                            raise
                    await changed.wait()
        return await find()

    async def _resolve(self, name: str | None, embeds: bool, pairs: bool) -> ServedModel:
        """Return it if it is ready now. Raises as `resolve`."""
        info = await self.find_info(name, embeds, pairs)
        if embeds and (info.embedding is None or (info.embedding.scores_pairs and not pairs)):
            raise unsupported("model", f" here: `{info.name}` is not an embedding model")
        if not embeds and not info.generates:
            raise unsupported("model", f" here: `{info.name}` only makes embeddings")
        if not info.ready:
            raise unavailable(
                "model_loading", f"The model `{info.name}` is not ready: it is still loading, or asleep."
            )
        text, defaults = await self._open(info)
        return ServedModel(name=name or info.name, info=info, text=text, sampling_defaults=defaults)

    async def _open(self, info: Model) -> tuple[TextModel, dict[str, float]]:
        key = (info.path, info.hash)
        if found := self._opened.get(key):
            return found
        async with self._lock:
            if found := self._opened.get(key):
                return found
            started = trio.current_time()
            try:
                text = await trio.to_thread.run_sync(TextModel.open, info.path)
            except ValueError as error:
                log.error("tokenizer_failed", model=info.name, error=str(error))
                message = f"The tokenizer of `{info.name}` cannot be read; the server's log says why."
                failed = ApiError(500, "server_error", "tokenizer_failed", message)
                failed.headers["x-should-retry"] = "false"
                raise failed from error
            opened = text, await trio.to_thread.run_sync(read_sampling_defaults, Path(info.path))
            self._opened[key] = opened
            log.info("tokenizer_opened", model=info.name, seconds=round(trio.current_time() - started, 3))
            return opened

    async def warm(self) -> None:
        """Open the tokenizers of ready models before somebody asks for them; for ever."""
        while True:
            changed, retry_seconds = self.link.models_changed, math.inf
            for info in self.link.models:
                if info.ready and (info.path, info.hash) not in self._opened:
                    try:
                        await self._open(info)
                    except ApiError:
                        retry_seconds = RETRY_SECONDS  # logged; a request meanwhile tries again by itself
            with trio.move_on_after(retry_seconds):
                await changed.wait()
