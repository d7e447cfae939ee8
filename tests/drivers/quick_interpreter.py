"""Triton's interpreter without what it does over and over: half of the time of a kernel of small programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["hasten"]


def hasten() -> None:
    """Replace the language's functions once for a launch, not for each call of a device function in it.

    A sum is such a call. Which functions are replaced depends on what is in sight of the caller: once for
    each of those sights. Where the interpreter is built in another way it stays as it is.
    """
    from triton.runtime import interpreter

    if not all(hasattr(interpreter, name) for name in ("_patch_lang", "_LangPatchScope", "GridExecutor")):
        return
    replace: Callable[[Any], Any] = interpreter._patch_lang
    languages = (interpreter.tl, interpreter.tl.core)
    sights: dict[int, frozenset[int]] = {}  # of functions, by the identity of their globals, which stay
    replaced: set[frozenset[int]] = set()  # since the launch began

    def replace_once(function: Any) -> Any:
        seen = function.__globals__
        if (sight := sights.get(id(seen))) is None:
            sight = frozenset(id(each) for each in seen.values() if any(each is one for one in languages))
            sights[id(seen)] = sight
        if sight in replaced:
            return interpreter._LangPatchScope()  # of nothing
        replaced.add(sight)
        return replace(function)

    launch = interpreter.GridExecutor.__call__

    def launch_anew(self: Any, *args: Any, **kwargs: Any) -> Any:
        replaced.clear()
        return launch(self, *args, **kwargs)

    interpreter._patch_lang = replace_once
    interpreter.GridExecutor.__call__ = launch_anew
