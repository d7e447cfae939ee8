"""Whether a prompt fits: its length in tokens, in characters before it is encoded, and how it is cut."""

from __future__ import annotations

from shell.gateway.body_parts import MAX_TEXT_CHARACTERS
from shell.gateway.catalog import ServedModel
from shell.gateway.errors import context_length_exceeded, invalid_value
from shell.gateway.shared_fields import SharedFields

CUT = "with 'truncate_prompt_tokens' "
MAX_ENCODED_CHARACTERS = MAX_TEXT_CHARACTERS  # of a text that no context bounds


def check_context(model: ServedModel, num_prompt: int, max_tokens: int | None, param: str) -> None:
    """Check that the prompt and what is asked for fit. Raises ApiError 400 `context_length_exceeded`."""
    limit = model.info.max_model_len
    wanted = 1 if max_tokens is None else max_tokens
    if num_prompt + wanted > limit:
        raise context_length_exceeded(limit, num_prompt, wanted, param)


def check_encoded(num_characters: int, param: str, when: str = "") -> None:
    """Check that texts together are not too long to be encoded whole. Raises ApiError 400 `invalid_value`."""
    if num_characters > MAX_ENCODED_CHARACTERS:
        limit = f"{when}at most {MAX_ENCODED_CHARACTERS} are encoded"
        raise invalid_value(param, f"'{param}' has {num_characters} characters; {limit}.")


def check_length(
    fields: SharedFields, model: ServedModel, num_characters: int, max_tokens: int | None, param: str
) -> None:
    """Check that a text can fit, by the fewest tokens that it may have.

    To encode 64 MiB takes gigabytes and seconds, and what is far too long is to cost others neither. A text
    that is cut to its last tokens must be encoded from its start, so there its length has a limit of its own.

    Raises:
        ApiError: 400 `context_length_exceeded`; 400 `invalid_value` for a text that is too long to be cut.
    """
    if fields.truncate_prompt_tokens is not None:
        check_encoded(num_characters, param, CUT)
    elif num_characters > model.info.max_model_len:
        check_context(model, num_characters // model.text.longest_piece, max_tokens, param)


def truncate(
    prompt: tuple[int, ...], fields: SharedFields, model: ServedModel, max_tokens: int | None
) -> tuple[int, ...]:
    """The last tokens of a prompt, as `truncate_prompt_tokens` says. Raises ApiError 400."""
    count = fields.truncate_prompt_tokens
    if count is None:
        return prompt
    if count == 0:
        raise invalid_value("truncate_prompt_tokens", "'truncate_prompt_tokens' is 0: nothing would be left.")
    if count < 0:
        count = max(1, model.info.max_model_len - (1 if max_tokens is None else max_tokens))
    return prompt[len(prompt) - count :] if count < len(prompt) else prompt
