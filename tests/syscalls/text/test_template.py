"""Chat templates render what transformers renders."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from syscalls.text.template import ChatTemplate, Message, TemplateError
from tests.syscalls.text.data import CHAT_TEMPLATES, make_words, require

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Wéather in a <city>", "parameters": {"type": "object"}},
}
CHAT: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is it raining & cold?"},
    {"role": "assistant", "content": "Yes.\n", "reasoning": "I looked.", "tool_calls": None},
    {"role": "user", "content": "日本?  "},
]
TEMPLATES = {
    "chatml": (
        "{%- for m in messages %}"
        "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\n"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "blocks": (
        "{{ bos_token }}\n"
        "{% for m in messages %}\n"
        "    {% if m.role == 'system' %}{% continue %}{% endif %}\n"
        "    {# a comment #}\n"
        "[{{ m.role }}] {{ m.content | trim }}{{ eos_token }}\n"
        "{% endfor %}\n"
    ),
    "tools": (
        "{% if tools %}{{ tools | tojson }}|{{ tools[0] | tojson(indent=2) }}{% endif %}"
        "{% set state = namespace(count=0) %}"
        "{% for m in messages %}{% set state.count = state.count + 1 %}{{ m.content }};{% endfor %}"
        "{{ state.count }}"
    ),
    "reasoning": (
        "{% for m in messages %}{% if m.tool_calls is defined %}calls{% endif %}"
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}|{{ m.thinking }}</think>{% endif %}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
        "{% if documents is none %}none{% endif %}{{ dict(a=1).a }}{{ strftime_now('%Y') }}"
    ),
}


def render_with_transformers(template: str, messages: list[Message], **options: Any) -> str:
    """Render with the oracle."""
    kind: Any = PreTrainedTokenizerFast
    tokenizer = kind(tokenizer_object=make_words(), **SPECIAL_TOKENS)
    rendered = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    assert isinstance(rendered, str)
    return rendered


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "options",
    [
        {"add_generation_prompt": True},
        {"add_generation_prompt": False, "tools": [WEATHER]},
        {"add_generation_prompt": False, "continue_final_message": True},
        {"add_generation_prompt": True, "bos_token": "<bos>"},
    ],
    ids=["prompt", "tools", "continue", "variable"],
)
def test_renders_what_transformers_renders(name: str, options: dict[str, Any]) -> None:
    """Blank handling, tojson, loop controls, reasoning names, tags and continuation agree with the oracle."""
    template = ChatTemplate({"default": TEMPLATES[name]}, SPECIAL_TOKENS)
    assert template.render(CHAT, **options) == render_with_transformers(TEMPLATES[name], CHAT, **options)


def test_continuation_of_content_blocks() -> None:
    """The last text block of a multi-part message is the one that is continued."""
    source = "{% for m in messages %}{% for b in m['content'] %}({{ b.text }}){% endfor %}{% endfor %}"
    chat: list[Message] = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two "}]},
    ]
    template = ChatTemplate({"default": source}, SPECIAL_TOKENS)
    rendered = template.render(chat, add_generation_prompt=False, continue_final_message=True)
    assert rendered == "(hi)(one)(two "
    assert rendered == render_with_transformers(source, chat, continue_final_message=True)
    assert chat[1]["content"][1]["text"] == "two "


def test_published_templates_render_as_confirmed() -> None:
    """Four published templates give the results that an independent project's tests expect."""
    num_cases = 0
    for line in require(CHAT_TEMPLATES).read_text().splitlines():
        entry = json.loads(line)
        tokens = {"bos_token": entry["bos_token"], "eos_token": entry["eos_token"]}
        template = ChatTemplate({"default": entry["template"]}, tokens)
        for case in entry["cases"]:
            rendered = template.render(case["messages"], case["add_generation_prompt"])
            assert rendered == case["jinja_render"]
            num_cases += 1
    assert num_cases >= 8


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "^roles must alternate$"),
        ("{% for m in messages %}", "is broken at line 1"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[0].__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
        ("{% set n = namespace(__init__=1) %}", "may not begin with _"),
        ("{% include 'other' %}", "loader"),
    ],
)
def test_template_failures_are_named(source: str, message: str) -> None:
    """The template's own message comes out; mistakes in it and attempts to leave the sandbox are told."""
    with pytest.raises(TemplateError, match=message):
        ChatTemplate({"default": source}, {}).render([{"role": "user", "content": "hi"}])


def test_calls_that_cannot_be_rendered_are_refused() -> None:
    """No template, no message, or a continuation that contradicts the generation prompt: each says so."""
    hello: list[Message] = [{"role": "user", "content": "hi"}]
    with pytest.raises(TemplateError, match="no chat template"):
        ChatTemplate({}, {}).render(hello)
    with pytest.raises(TemplateError, match=r"named default.*'rag'"):
        ChatTemplate({"rag": ""}, {}).render(hello)
    template = ChatTemplate({"default": "{{ messages[0].role }}"}, {})
    with pytest.raises(TemplateError, match="at least one message"):
        template.render([])
    with pytest.raises(TemplateError, match="exclude each other"):
        template.render(hello, add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(TemplateError, match="needs text"):
        template.render([{"role": "assistant", "content": None}], False, continue_final_message=True)
    with pytest.raises(TemplateError, match="drops part of the last message"):
        template.render(hello, add_generation_prompt=False, continue_final_message=True)


def test_tool_template_is_used_for_calls_with_tools() -> None:
    """A model with a separate template for tools uses it exactly when there are some."""
    template = ChatTemplate({"default": "plain", "tool_use": "tools"}, {})
    hello: list[Message] = [{"role": "user", "content": "hi"}]
    assert template.render(hello) == "plain"
    assert template.render(hello, tools=[]) == "plain"
    assert template.render(hello, tools=[WEATHER]) == "tools"
