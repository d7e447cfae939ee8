"""Input items that only name one: an item of an earlier response, which is stored."""

from __future__ import annotations

import re
from typing import Any

from shell.gateway.errors import ApiError, invalid_value
from shell.gateway.response_record import ResponseStore

Json = dict[str, Any]

_ITEM_ID = re.compile(r"[a-z]+_(?P<response>[0-9a-f]{32})_[0-9]+")


def resolve_references(items: list[Any], store: ResponseStore, tenant: str) -> list[Any]:
    """Put the items in the places of their names. Raises ApiError 400: the tenant has none of that name."""
    return [
        _find(item.get("id"), f"input[{index}].id", store, tenant) if _is_reference(item) else item
        for index, item in enumerate(items)
    ]


def _is_reference(item: Any) -> bool:
    return isinstance(item, dict) and (item.get("type") == "item_reference" or item.keys() == {"id"})


def _find(wanted: Any, where: str, store: ResponseStore, tenant: str) -> Json:
    match = _ITEM_ID.fullmatch(wanted) if isinstance(wanted, str) else None
    if match is not None:
        try:
            record = store.get(f"resp_{match['response']}", tenant)
        except ApiError:
            record = None
        for item in record.output if record is not None else ():
            if item["id"] == wanted:
                return item
    message = f"Invalid value for '{where}': no stored response has an item '{str(wanted)[:64]}'."
    raise invalid_value(where, message)
