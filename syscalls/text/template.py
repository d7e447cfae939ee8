"""Chat templates: a conversation to one prompt text, by the model's own Jinja template.

Renders what transformers' `apply_chat_template` renders. The sandbox keeps a template from files and
attributes, but does not bound its time: a template from a stranger needs a process and a deadline of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CONTINUE_MARK = "CONTINUE_FINAL_MESSAGE_MARK "
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # names that templates read it under

Message = Mapping[str, Any]


class TemplateError(ValueError):
    """The template refused the conversation, or cannot be used; the message is the template's own."""


class ChatTemplate:
    """A model's chat templates, compiled on first use. Safe to share by threads.

    Args:
        templates: Jinja sources by name; "default" is used, or "tool_use" for a call with tools.
        special_tokens: "bos_token" and the like, visible to the template.
    """

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._sources = dict(templates)
        self._special_tokens = dict(special_tokens)
        self._compiled: dict[str, jinja2.Template] = {}

    @property
    def is_available(self) -> bool:
        """True when the model has a template."""
        return bool(self._sources)

    def source(self, *, with_tools: bool = False) -> str:
        """Return the Jinja source that `render` would use. Raises TemplateError when there is none."""
        return self._sources[self._choose(with_tools)]

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """Render a conversation of plain JSON values.

        Args:
            messages: each with "role" and "content"; a key whose value is None counts as absent.
            add_generation_prompt: end with the header of an answer.
            continue_final_message: end inside the last message, without the marks that close it.
            tools: JSON schemas of functions.
            variables: more template variables; they win over special tokens of the same name.

        Returns:
            The prompt, special tokens spelled out: encode it with `add_special_tokens=False`.

        Raises:
            TemplateError: no template, one that does not compile, a conversation it refuses, or a final
                message that does not survive rendering.
        """
        name = self._choose(bool(tools))
        if not messages:
            raise TemplateError("a conversation needs at least one message")
        if continue_final_message and add_generation_prompt:
            raise TemplateError("continue_final_message and add_generation_prompt exclude each other")
        chat = [_normalize(message) for message in messages]
        final_text = _mark_final_message(chat) if continue_final_message else ""
        context = {
            "tools": list(tools) if tools is not None else None,
            "documents": None,
            **self._special_tokens,
            **variables,
            "messages": chat,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            rendered = self._compile(name).render(context)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"the chat template is broken at line {error.lineno}: {error}") from error
        except jinja2.TemplateError as error:
            raise TemplateError(str(error)) from error
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise TemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error
        return _cut_at_mark(rendered, final_text) if continue_final_message else rendered

    def _choose(self, with_tools: bool) -> str:
        if with_tools and "tool_use" in self._sources:
            return "tool_use"
        if "default" in self._sources:
            return "default"
        if self._sources:
            raise TemplateError(f"no chat template is named default; there are {sorted(self._sources)}")
        raise TemplateError("this model has no chat template; its folder has no chat_template.jinja")

    def _compile(self, name: str) -> jinja2.Template:
        if name not in self._compiled:
            self._compiled[name] = _make_environment().from_string(self._sources[name])
        return self._compiled[name]


def _normalize(message: Message) -> dict[str, Any]:
    """Copy a message without its None values, and with its reasoning under every name that templates use."""
    plain = {key: value for key, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in REASONING_FIELDS if name in plain), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def _mark_final_message(chat: list[dict[str, Any]]) -> str:
    """Append the mark to the last text of the last message, in place. Returns the text without it."""
    content = chat[-1].get("content")
    if isinstance(content, str):
        chat[-1]["content"] = content + CONTINUE_MARK
        return content
    if isinstance(content, list):
        for index in reversed(range(len(content))):
            block = content[index]
            if isinstance(block, Mapping) and isinstance(block.get("text"), str):
                text: str = block["text"]
                blocks = [*content]
                blocks[index] = {**block, "text": text + CONTINUE_MARK}
                chat[-1]["content"] = blocks
                return text
    raise TemplateError("continue_final_message needs text in the last message")


def _cut_at_mark(rendered: str, final_text: str) -> str:
    """Cut a rendered conversation where the mark stands.

    When the template trimmed the message, the mark's own blank is gone: then blanks before it go too.
    """
    where = rendered.rfind(CONTINUE_MARK.strip())
    if where < 0 or final_text.strip() not in rendered:
        raise TemplateError("the chat template drops part of the last message: it cannot be continued")
    kept = rendered[:where]
    return kept if rendered.startswith(CONTINUE_MARK, where) else kept.rstrip()


class _GenerationBlock(jinja2.ext.Extension):
    """Lets `{% generation %}` through, which templates use to mark answers for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=lineno)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without underscored attributes, through which a template could reach out."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *initial = args
        attributes = dict(*initial, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace attribute may not begin with _: {name}")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON plainly; Jinja's own filter escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _make_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    functions: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _make_dict,
        "namespace": _Namespace,
    }
    environment.filters["tojson"] = _to_json
    environment.globals.update(functions)
    return environment
