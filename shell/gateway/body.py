"""A request's body: bytes to a JSON object without nulls."""

from __future__ import annotations

from typing import Any

import msgspec

from shell.gateway.errors import invalid
from shell.gateway.fields import drop_nulls

_decoder = msgspec.json.Decoder()


def parse_body(raw: bytes | bytearray) -> dict[str, Any]:
    """Decode a body, whatever its content type says. Null members are dropped at any depth.

    Raises:
        ApiError: 400 `invalid_json` when it does not parse or is nested too deeply; 400 `invalid_type`
            when it is not an object.
    """
    try:
        value = drop_nulls(_decoder.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid("invalid_json", f"The request's body is not valid JSON: {error}.") from None
    except RecursionError:
        raise invalid("invalid_json", "The request's body is nested too deeply.") from None
    if not isinstance(value, dict):
        raise invalid("invalid_type", "The request's body must be a JSON object.")
    return value
