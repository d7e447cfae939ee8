"""`/load` and `/props`: how busy the server is, and what it serves."""

from __future__ import annotations

from shell.gateway.exchange import Exchange
from shell.gateway.health import find_version
from shell.gateway.replies.server import LoadReport, ServerProps
from shell.gateway.service import Endpoint
from shell.gateway.tokenize import ModelQuery, describe_tokenizer


class Load(Endpoint):
    """Counts what is under way. `server_load` is vLLM's name for the requests in flight."""

    name = "load"
    answer_type = LoadReport

    async def answer(self, exchange: Exchange) -> None:
        """The gateway's own number, then the kernel's."""
        statistics = await self.client_of(exchange).statistics()
        admission = self.service.admission.statistics()
        response = {
            "server_load": admission.num_in_flight,
            "max_in_flight": self.service.admission.max_in_flight,
            "is_draining": admission.is_draining or statistics.draining,
            "num_running": statistics.num_running,
            "num_waiting": statistics.num_waiting,
            "num_processes": statistics.num_processes,
            "kv_usage": round(1 - statistics.num_free_frames / max(1, statistics.num_frames), 6),
            "num_cached_frames": statistics.num_cached_frames,
        }
        await exchange.respond_json(200, response)


class Props(Endpoint):
    """llama.cpp's description of the server; `?model=` when several models are served."""

    name = "props"
    query_struct = ModelQuery
    answer_type = ServerProps

    async def answer(self, exchange: Exchange) -> None:
        """Describe one model. `model_path` is its name: where it lies is nobody's business."""
        model = await self.service.catalog.resolve(exchange.query.get("model"))
        info, tokenizer = model.info, describe_tokenizer(model)
        special = tokenizer["special_tokens"]
        response = {
            "default_generation_settings": {
                "n_ctx": info.max_model_len,
                "params": {"temperature": 1.0, "top_p": 1.0, **model.sampling_defaults},
            },
            "total_slots": self.service.admission.max_in_flight,
            "model_alias": model.name,
            "model_path": model.name,
            "chat_template": tokenizer["chat_template"] or "",
            "bos_token": special.get("bos_token", ""),
            "eos_token": special.get("eos_token", ""),
            "modalities": {"vision": False, "audio": False},
            "build_info": f"llmos {find_version()}",
            "is_sleeping": False,
        }
        await exchange.respond_json(200, response)
