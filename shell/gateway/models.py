"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from typing import Any

from shell.gateway.exchange import Exchange
from shell.gateway.replies.server import ModelObject, ModelObjects
from shell.gateway.service import Endpoint
from syscalls.system import Model


def describe_model(model: Model, name: str | None = None) -> dict[str, Any]:
    """Return the API's object for a model, or for another name of it. Its `max_model_len` can be used."""
    return {
        "id": name or model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "llmos",
        "root": model.name,
        "parent": None,
        "max_model_len": model.max_model_len,
        "meta": {
            "vocab_size": model.vocab_size,
            "num_parameters": model.num_parameters,
            "dtype": model.dtype,
            "hash": model.hash,
            "ready": model.ready,
        },
    }


class ModelListing(Endpoint):
    """Lists what is served, the default first, then by its other names."""

    name = "models"
    answer_type = ModelObjects

    async def answer(self, exchange: Exchange) -> None:
        """Ask the kernel, so that the list is never old."""
        await self.service.link.refresh()
        catalog, models = self.service.catalog, self.service.link.models
        rows = [describe_model(model) for model in models]
        for name in catalog.aliases:
            model = catalog.find_alias(name)
            if model is not None and name not in {each.name for each in models}:
                rows.append(describe_model(model, name))
        await exchange.respond_json(200, {"object": "list", "data": rows})


class ModelDescription(Endpoint):
    """Describes one model; its name may hold slashes."""

    name = "models.id"
    answer_type = ModelObject

    async def answer(self, exchange: Exchange) -> None:
        """Find it by name."""
        name = exchange.path_params["model"]
        model = await self.service.catalog.find_info(name)
        await exchange.respond_json(200, describe_model(model, name))
