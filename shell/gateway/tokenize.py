"""`/tokenize`, `/detokenize`, `/apply-template`, `/tokenizer_info`: a model's text side, without a model."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from shell.gateway.catalog import ServedModel
from shell.gateway.chat import ChatBody, ChatPrompt, encode_chat, read_chat_fields
from shell.gateway.errors import invalid, invalid_value
from shell.gateway.exchange import Exchange
from shell.gateway.fields import FieldTable, implemented, read_fields, refused
from shell.gateway.json_body import read_json
from shell.gateway.messages import count_characters
from shell.gateway.prompt_length import check_encoded
from shell.gateway.replies.server import DetokenizedText, RenderedConversation, TokenizedText, TokenizerReport
from shell.gateway.service import Endpoint
from shell.gateway.shared_fields import TokenId
from shell.gateway.tools import read_tool_use
from syscalls.text.template import TemplateError

Json = dict[str, Any]

TOKENIZE_FIELDS: FieldTable = {
    **implemented("model", "prompt", "content", "add_special_tokens", "return_token_strs"),
    **refused(with_pieces=False),
}
DETOKENIZE_FIELDS: FieldTable = implemented("model", "tokens", "skip_special_tokens")


class TokenizeFields(msgspec.Struct, kw_only=True):
    """A text to encode. `content` is llama.cpp's name of `prompt`."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChat(ChatBody, kw_only=True):
    """A conversation to encode: the body of a chat completion."""

    return_token_strs: bool = False


class DetokenizeFields(msgspec.Struct, kw_only=True):
    """Tokens to decode. Special tokens are spelled out unless asked otherwise."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=1 << 22)]
    skip_special_tokens: bool = False


class ModelQuery(msgspec.Struct):
    """Which model; needed when several are served."""

    model: str | None = None


class TextEndpoint(Endpoint):
    """An endpoint whose request is a JSON body."""

    async def read(self, exchange: Exchange) -> Json:
        """Read the body. Raises ApiError 400 or 413."""
        return await read_json(self.service, exchange)

    async def render(self, body: Json, ignored: list[str]) -> tuple[ServedModel, ChatPrompt]:
        """Render the conversation of a chat completion's body. Raises ApiError."""
        fields, messages = read_chat_fields(body, ignored)
        tool_use = read_tool_use(fields.tools or [], fields.tool_choice, fields.parallel_tool_calls, ignored)
        model = await self.service.catalog.resolve(fields.model)
        check_encoded(count_characters(messages), "messages")
        return model, await encode_chat(self.service, model.text, fields, messages, tool_use)


class Tokenize(TextEndpoint):
    """Encodes a text, or a conversation as `/v1/chat/completions` would."""

    name = "tokenize"
    body_type = TokenizeFields | TokenizeChat
    answer_type = TokenizedText

    async def answer(self, exchange: Exchange) -> None:
        """Take `prompt`, `content` or `messages`: exactly one of them."""
        body = await self.read(exchange)
        given = [name for name in ("prompt", "content", "messages") if name in body]
        if len(given) != 1:
            code = "invalid_value" if given else "missing_required_parameter"
            raise invalid(code, "Give exactly one of 'prompt', 'content' and 'messages'.", "prompt")
        if given == ["messages"]:
            wants_strings = body.pop("return_token_strs", False)
            if not isinstance(wants_strings, bool):
                message = "Invalid value for 'return_token_strs': expected a boolean."
                raise invalid("invalid_type", message, "return_token_strs")
            model, prompt = await self.render(body, exchange.ignored)
            tokens = list(prompt.tokens)
        else:
            fields = read_fields(body, TOKENIZE_FIELDS, TokenizeFields, exchange.ignored)
            text = fields.prompt if fields.prompt is not None else fields.content or ""
            wants_strings = fields.return_token_strs
            check_encoded(len(text), given[0])
            model = await self.service.catalog.resolve(fields.model)
            tokens = await self.service.do_text_work(
                len(text), lambda: model.text.encode(text, fields.add_special_tokens)
            )
        response: Json = {
            "tokens": tokens,
            "count": len(tokens),
            "max_model_len": model.info.max_model_len,
            "token_strs": None,
        }
        if wants_strings:
            response["token_strs"] = [model.text.tokenizer.id_to_token(token) for token in tokens]
        await exchange.respond_json(200, response)


class Detokenize(TextEndpoint):
    """Decodes tokens."""

    name = "detokenize"
    body_type = DetokenizeFields
    answer_type = DetokenizedText

    async def answer(self, exchange: Exchange) -> None:
        """Answer under both names, vLLM's and llama.cpp's."""
        body = await self.read(exchange)
        fields = read_fields(body, DETOKENIZE_FIELDS, DetokenizeFields, exchange.ignored)
        model = await self.service.catalog.resolve(fields.model)
        last = model.info.vocab_size - 1
        if fields.tokens and max(fields.tokens) > last:
            raise invalid_value("tokens", f"'tokens' holds an id over {last}, the model's last.")
        text = await self.service.do_text_work(
            len(fields.tokens), lambda: model.text.decode(fields.tokens, fields.skip_special_tokens)
        )
        await exchange.respond_json(200, {"prompt": text, "content": text})


class ApplyTemplate(TextEndpoint):
    """Renders a conversation and shows the text. Takes the body of a chat completion."""

    name = "apply_template"
    body_type = ChatBody
    answer_type = RenderedConversation

    async def answer(self, exchange: Exchange) -> None:
        """Render, as a chat completion would."""
        _, prompt = await self.render(await self.read(exchange), exchange.ignored)
        await exchange.respond_json(200, {"prompt": prompt.text, "count": len(prompt.tokens)})


class TokenizerInfo(Endpoint):
    """Describes a tokenizer; `?model=` when several are served."""

    name = "tokenizer_info"
    query_struct = ModelQuery
    answer_type = TokenizerReport

    async def answer(self, exchange: Exchange) -> None:
        """Tell what a client needs to count and cut by itself."""
        model = await self.service.catalog.resolve(exchange.query.get("model"))
        await exchange.respond_json(200, describe_tokenizer(model))


def describe_tokenizer(model: ServedModel) -> Json:
    """Return a model's text side. `chat_template` is null when it has none."""
    try:
        template: str | None = model.text.chat_template.source()
    except TemplateError:
        template = None
    return {
        "model": model.name,
        "vocab_size": model.text.vocab_size,
        "max_model_len": model.info.max_model_len,
        "special_tokens": dict(model.text.special_tokens),
        "eos_token_ids": list(model.info.eos_token_ids),
        "chat_template": template,
    }
