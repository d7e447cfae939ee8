"""The JSON body of a request: a small one is decoded here, a large one by another process."""

from __future__ import annotations

import re
from typing import Any

from shell.gateway.body import parse_body
from shell.gateway.body_file import BodyFile
from shell.gateway.body_parts import BodyLimits
from shell.gateway.body_process import Refused
from shell.gateway.errors import ApiError, context_length_exceeded, invalid, unsupported
from shell.gateway.exchange import Exchange
from shell.gateway.service import Service

# A part of a message that is no text, such as a picture.
_OTHER_PART = re.compile(r"((?:messages|input)\[\d+\]\.content\[\d+\])\.(?!text\b|refusal\b)(\w{1,40})")


async def read_json(
    service: Service, exchange: Exchange, *prompt_fields: str, is_optional: bool = False
) -> dict[str, Any]:
    """Read and decode the whole body. A checkpoint; holds the interpreter's lock for milliseconds at a time.

    Args:
        service: the gateway's parts.
        exchange: the request.
        prompt_fields: hold the text that a model's context must have room for; none: it need not fit one.
        is_optional: no body is an empty object.

    Raises:
        ApiError: 400 when it is no JSON object, or holds too much; 408; 413; 415; 429; 503.
        ClientDisconnected: it went away.
    """
    if exchange.content_encoding:
        message = f"The request's body is packed with {exchange.content_encoding[:40]!r}: send it as it is."
        raise ApiError(415, "invalid_request_error", "unsupported_media_type", message)
    body = await exchange.read_body(service.uploads)
    if not isinstance(body, BodyFile):
        return {} if is_optional and not body else parse_body(body)
    largest = max((model.max_model_len for model in service.link.models), default=0)
    found = await service.bodies.read(body, BodyLimits.for_context(largest))
    exchange.close_body_file(service.uploads)
    if isinstance(found, Refused):
        raise await _explain(service, found, prompt_fields)
    return found


async def _explain(service: Service, refused: Refused, prompt_fields: tuple[str, ...]) -> ApiError:
    """The error for a body: a text that is longer than any context is said to be that."""
    if (part := _OTHER_PART.match(refused.param or "")) is not None:
        return unsupported(part[1], f": this model takes text, not '{part[2]}' parts")
    if refused.field in prompt_fields and not refused.is_cut:
        model = await service.catalog.resolve(refused.model)
        num_tokens = refused.num_characters // model.text.longest_piece  # it has no fewer
        if num_tokens >= model.info.max_model_len:
            return context_length_exceeded(model.info.max_model_len, num_tokens, 1, refused.field)
    code = refused.code
    return invalid(code, refused.message, refused.param)
