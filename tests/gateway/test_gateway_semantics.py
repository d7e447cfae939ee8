"""What the fields mean: stop strings, choices, log-probabilities, limits, echo, templates."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from syscalls.process import ExitStatus, Kill, Spawn
from syscalls.sampling import Dry, Dynatemp, Mirostat, Sampling, TokenLogprobs, Xtc
from tests.gateway.harness import (
    Gateway,
    KernelThread,
    events_of,
    hello,
    http_request,
    read_until,
    say_forever,
    says,
)
from tests.scripted_kernel import (
    ASSISTANT,
    CONTEXT,
    END,
    STOPPED_BY_MODEL,
    SYSTEM,
    USER,
    ScriptedProcess,
    make_model,
    read_tokens,
)

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def last_spawn(kernel: KernelThread) -> Spawn:
    """Return the newest process's spawn call."""
    spawn: Spawn = kernel.kernel.spawned[-1].spawn
    return spawn


def ask(gateway: Gateway, **fields: Any) -> Any:
    """Complete a prompt of one token; returns the response, with which its stream must agree."""
    body = {"prompt": "x", "max_tokens": 500, **fields}
    whole = gateway.post(COMPLETIONS, body)
    assert whole.status_code == 200, whole.text
    events = events_of(gateway.post(COMPLETIONS, {**body, "stream": True}))
    for choice in whole.json()["choices"]:
        rows = [e["choices"][0] for e in events if e["choices"][0]["index"] == choice["index"]]
        assert "".join(row["text"] for row in rows) == choice["text"]
        assert (rows[-1]["finish_reason"], rows[-1]["stop_reason"]) == (
            choice["finish_reason"],
            choice["stop_reason"],
        )
    return whole.json()


@pytest.mark.parametrize(
    ("text", "stop", "expected", "stop_reason"),
    [
        ("one two three", "two", "one ", "two"),
        ("one two three", ["three", "two"], "one ", "two"),
        ("ababac", "abac", "ab", "abac"),  # a match that begins inside a failed one
        ("aab", ["aab", "ab"], "", "aab"),  # both end at the same character: the longer
        ("one tw", "two", "one tw", None),  # a prefix at the end is let out
        ("naïve 🙂 end", "🙂", "naïve ", "🙂"),
        ("日本語", "本", "日", "本"),
        ("plain", "absent", "plain", None),
        ("", "x", "", None),
        ("stop", "stop", "", "stop"),
        ("plain", "", "plain", None),
        ("plain", [], "plain", None),
    ],
)
def test_stop_strings(
    gateway: Gateway, kernel: KernelThread, text: str, stop: Any, expected: str, stop_reason: str | None
) -> None:
    """A stop string split over tokens ends the text before it, in the whole answer and in the stream."""
    kernel.program = says(text)
    (choice,) = ask(gateway, stop=stop)["choices"]
    assert (choice["text"], choice["stop_reason"], choice["finish_reason"]) == (expected, stop_reason, "stop")


def test_stop_string_kills_the_process(gateway: Gateway, kernel: KernelThread) -> None:
    """After a match the process must not go on: it is killed, and usage counts up to the match."""
    kernel.program = say_forever
    body = {"prompt": "x", "max_tokens": 4000, "stop": "xxx"}
    answer = gateway.post(COMPLETIONS, body).json()
    assert answer["choices"][0]["text"] == ""
    assert answer["usage"]["completion_tokens"] == 3
    kernel.wait_until(lambda: any(isinstance(call, Kill) for call in kernel.kernel.calls))
    assert len(kernel.kernel.spawned[-1].output) < 4000


@pytest.mark.parametrize("name", ["include_stop_str_in_output", "no_stop_trim"])
def test_stop_string_may_be_included(gateway: Gateway, kernel: KernelThread, name: str) -> None:
    """With either name of the switch the match itself is shown, and nothing after it."""
    kernel.program = says("one two three")
    (choice,) = ask(gateway, stop="two", **{name: True})["choices"]
    assert (choice["text"], choice["stop_reason"]) == ("one two", "two")


def test_stop_token_is_not_text(gateway: Gateway, kernel: KernelThread) -> None:
    """An end token named by the request is told in stop_reason, counted, and not shown."""
    kernel.program = says("ab", end=ExitStatus("stop", stop_token=ord("!")))
    answer = ask(gateway, stop_token_ids=[ord("!")])
    assert answer["choices"][0]["text"] == "ab"
    assert answer["choices"][0]["stop_reason"] == ord("!")
    assert answer["usage"]["completion_tokens"] == 3
    assert last_spawn(kernel).stop_token_ids == (ord("!"),)


def test_special_tokens_are_skipped_or_shown(gateway: Gateway, kernel: KernelThread) -> None:
    """Special tokens inside the text are left out unless asked for."""
    kernel.program = says("a", USER, "b", end=ExitStatus("length"))
    assert ask(gateway)["choices"][0]["text"] == "ab"
    assert ask(gateway, skip_special_tokens=False)["choices"][0]["text"] == "a<|user|>b"


def test_ignore_eos_gives_exactly_max_tokens(gateway: Gateway, kernel: KernelThread) -> None:
    """With ignore_eos and max_tokens = k every choice has exactly k tokens."""
    kernel.program = say_forever
    answer = ask(gateway, ignore_eos=True, max_tokens=7, n=3, return_token_ids=True)
    assert [len(choice["token_ids"]) for choice in answer["choices"]] == [7, 7, 7]
    assert answer["usage"]["completion_tokens"] == 21
    assert answer["usage"]["prompt_tokens"] == 1
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert last_spawn(kernel).ignore_eos


def test_all_samples_share_one_spawn(gateway: Gateway, kernel: KernelThread) -> None:
    """n goes to the kernel as num_samples, so that the prefill is shared."""
    gateway.post(CHAT, hello(n=5, seed=3))
    spawns = [call for call in kernel.kernel.calls if isinstance(call, Spawn)]
    assert [(spawn.num_samples, spawn.sampling.seed, spawn.auto_reap) for spawn in spawns] == [(5, 3, True)]


def test_prompts_of_every_kind(gateway: Gateway, kernel: KernelThread) -> None:
    """A string, strings, ids and lists of ids; choices are ordered by prompt, then sample."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        await process.say(f"{process.prompt}{process.sample}")
        await process.emit(END)
        return STOPPED_BY_MODEL

    kernel.program = program
    for prompt, expected in (
        ("ab", ["ab0", "ab1"]),
        (["ab", "c"], ["ab0", "ab1", "c0", "c1"]),
        ([97, 98], ["ab0", "ab1"]),
        ([[97, 98], [99]], ["ab0", "ab1", "c0", "c1"]),
    ):
        answer = gateway.post(COMPLETIONS, {"prompt": prompt, "n": 2}).json()
        assert [choice["text"] for choice in answer["choices"]] == expected
        assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))
        assert answer["usage"]["prompt_tokens"] == (3 if len(expected) == 4 else 2)


def test_echo(gateway: Gateway, kernel: KernelThread) -> None:
    """echo repeats the prompt first; with max_tokens 0 nothing is generated at all."""
    kernel.program = says("tail")
    assert ask(gateway, prompt="head ", echo=True)["choices"][0]["text"] == "head tail"
    assert ask(gateway, prompt=list(b"head "), echo=True)["choices"][0]["text"] == "head tail"
    kernel.call(kernel.kernel.spawned.clear)
    answer = ask(gateway, prompt=["head", "two"], echo=True, max_tokens=0, n=2)
    assert [choice["text"] for choice in answer["choices"]] == ["head", "head", "two", "two"]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"]["completion_tokens"] == 0
    assert kernel.kernel.spawned == []


def test_default_limits(gateway: Gateway, kernel: KernelThread) -> None:
    """Chat runs to the context by default, completions for sixteen tokens; the newer name wins."""
    gateway.post(CHAT, hello())
    assert last_spawn(kernel).max_tokens is None
    gateway.post(CHAT, hello(max_tokens=5, max_completion_tokens=3))
    assert last_spawn(kernel).max_tokens == 3
    gateway.post(CHAT, hello(max_tokens=5))
    assert last_spawn(kernel).max_tokens == 5
    gateway.post(COMPLETIONS, {"prompt": "x"})
    assert last_spawn(kernel).max_tokens == 16
    assert gateway.post(COMPLETIONS, {"prompt": "x", "max_tokens": CONTEXT - 1}).status_code == 200


def test_sampling_reaches_the_kernel(gateway: Gateway, kernel: KernelThread) -> None:
    """Every sampling parameter arrives as it was given; absent ones are the reference API's."""
    gateway.post(CHAT, hello())
    sampling = last_spawn(kernel).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (1.0, 1.0, 0, None)
    gateway.post(
        CHAT,
        hello(
            temperature=0, top_p=0.5, top_k=-1, min_p=0.25, frequency_penalty=-1, presence_penalty=2,
            repeat_penalty=1.5, seed=-7, logit_bias={"5": -100, "6": 1.5}, min_tokens=2, priority=5,
        ),
    )  # fmt: skip
    spawn = last_spawn(kernel)
    sampling = spawn.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.0, 0.5, 0, 0.25)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (-1.0, 2.0)
    assert (sampling.repetition_penalty, sampling.seed) == (1.5, -7)
    assert sampling.logit_bias == {5: -100.0, 6: 1.5}
    assert (spawn.min_tokens, spawn.nice, sampling.logprobs) == (2, -5, None)


def test_every_sampler_reaches_the_kernel(gateway: Gateway, kernel: KernelThread) -> None:
    """What llama.cpp, vLLM and SGLang call their samplers arrives in the kernel's terms."""
    gateway.post(CHAT, hello())
    assert last_spawn(kernel).sampling == Sampling(temperature=1.0)
    gateway.post(
        CHAT,
        hello(
            typical_p=0.9, top_n_sigma=1.5, repeat_last_n=64, dry_multiplier=0.8, dry_base=2,
            dry_allowed_length=3, dry_penalty_last_n=100, dry_sequence_breakers=["\n", "<|"],
            xtc_probability=0.5, xtc_threshold=0.2, dynatemp_range=0.3, dynatemp_exponent=2,
            bad_words=["no", " no"], allowed_token_ids=[9, 7, 9], logprobs_mode="processed_logprobs",
            deadline_ms=1500,
        ),
    )  # fmt: skip
    spawn = last_spawn(kernel)
    no, space_no = tuple(b"no"), tuple(b" no")
    assert spawn.deadline_seconds == 1.5
    assert spawn.sampling == Sampling(
        temperature=1.0, typical_p=0.9, top_n_sigma=1.5, repeat_last_n=64,
        dry=Dry(0.8, 2.0, 3, 100, (10, END, USER, ASSISTANT, SYSTEM)), xtc=Xtc(0.5, 0.2),
        dynatemp=Dynatemp(0.3, 2.0), bad_words=(no, space_no), allowed_token_ids=(9, 7),
        processed_logprobs=True,
    )  # fmt: skip


@pytest.mark.parametrize("samplers", [["penalties", "top_k", "typ_p", "temperature"], "ekyt"])
def test_the_order_of_samplers_is_the_request_s(gateway: Gateway, kernel: KernelThread, samplers) -> None:
    """What `samplers` does not name is not done; by names or by letters."""
    gateway.post(CHAT, hello(samplers=samplers, dry_multiplier=1.0, top_p=0.5, repeat_penalty=1.1))
    sampling = last_spawn(kernel).sampling
    assert sampling.cuts == ("top_k", "typical_p", "temperature")
    assert (sampling.dry, sampling.has_penalties) == (None, True)
    gateway.post(CHAT, hello(samplers=["top_k"], repeat_penalty=1.1))
    assert not last_spawn(kernel).sampling.has_penalties


def test_mirostat_replaces_the_cuts_and_says_so(gateway: Gateway, kernel: KernelThread) -> None:
    """As in llama.cpp; what has no effect is listed."""
    response = gateway.post(CHAT, hello(mirostat=2, mirostat_tau=3, top_k=40, min_p=0.1, temperature=0.7))
    assert response.headers["x-llmos-ignored-params"] == "top_k,min_p"
    assert last_spawn(kernel).sampling.mirostat == Mirostat(2, 3.0, 0.1)


def _logprob_program(text: str, *, token_top: tuple[int, ...] = (ord("a"), ord("b"))) -> Any:
    async def program(process: ScriptedProcess) -> ExitStatus:
        found = TokenLogprobs(-0.5, token_top, (-0.25, float("-inf"))[: len(token_top)])
        await process.emit(*text.encode(), logprobs=(found,) * len(text.encode()))
        await process.emit(END, logprobs=(found,))
        return STOPPED_BY_MODEL

    return program


def test_chat_logprobs(gateway: Gateway, kernel: KernelThread) -> None:
    """Entries have token, logprob, bytes and alternatives; they spell the content, whole and streamed."""
    kernel.program = _logprob_program("aé")
    body = hello(logprobs=True, top_logprobs=2)
    rows = gateway.post(CHAT, body).json()["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(row["bytes"]) for row in rows) == "aé".encode()
    assert rows[0] == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.25, "bytes": [97]},
            {"token": "b", "logprob": -9999.0, "bytes": [98]},
        ],
    }
    assert last_spawn(kernel).sampling.logprobs == 2
    events = events_of(gateway.post(CHAT, {**body, "stream": True}))
    streamed = [e["choices"][0]["logprobs"]["content"] for e in events if e["choices"][0]["logprobs"]]
    assert sum(streamed, []) == rows  # noqa: RUF017 - a handful of lists
    for event in events:
        choice = event["choices"][0]
        if choice["logprobs"]:
            spelled = b"".join(bytes(row["bytes"]) for row in choice["logprobs"]["content"])
            assert spelled.decode() == choice["delta"]["content"]
    plain = gateway.post(CHAT, hello(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert plain[0]["top_logprobs"] == []
    assert last_spawn(kernel).sampling.logprobs == 0


def test_completion_logprobs(gateway: Gateway, kernel: KernelThread) -> None:
    """Parallel lists; the sampled token is among the alternatives with the identical number."""
    kernel.program = _logprob_program("xa")
    found = gateway.post(COMPLETIONS, {"prompt": "p", "logprobs": 2}).json()["choices"][0]["logprobs"]
    assert found == {
        "tokens": ["x", "a"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a": -0.25, "b": -9999.0, "x": -0.5}, {"a": -0.25, "b": -9999.0}],
        "text_offset": [0, 1],
    }
    kernel.program = _logprob_program("x", token_top=())
    events = events_of(gateway.post(COMPLETIONS, {"prompt": "p", "logprobs": 0, "stream": True}))
    found = next(e["choices"][0]["logprobs"] for e in events if e["choices"][0]["logprobs"])
    assert found["top_logprobs"] == [{"x": -0.5}]


def test_logprobs_stay_aligned_with_a_stop_string(gateway: Gateway, kernel: KernelThread) -> None:
    """Tokens that a stop string swallowed have no entry; held-back ones come when they are let out."""
    kernel.program = _logprob_program("abXcdXYef")
    for stream in (False, True):
        body = {"prompt": "p", "logprobs": 0, "stop": "XY", "max_tokens": 50, "stream": stream}
        response = gateway.post(COMPLETIONS, body)
        choices = [e["choices"][0] for e in (events_of(response) if stream else [response.json()])]
        tokens = [token for c in choices if c["logprobs"] for token in c["logprobs"]["tokens"]]
        assert "".join(tokens) == "".join(c["text"] for c in choices) == "abXcd"
        for choice in choices:
            assert "".join(choice["logprobs"]["tokens"] if choice["logprobs"] else []) == choice["text"]


def test_token_ids_are_returned(gateway: Gateway, kernel: KernelThread) -> None:
    """With return_token_ids every sampled token comes back, the end token included, whole and streamed."""
    kernel.program = says("a🙂")
    expected = [*"a🙂".encode(), END]
    for path, body in ((CHAT, hello()), (COMPLETIONS, {"prompt": [1, 2]})):
        whole = gateway.post(path, {**body, "return_token_ids": True}).json()
        assert whole["choices"][0]["token_ids"] == expected
        events = events_of(gateway.post(path, {**body, "return_token_ids": True, "stream": True}))
        ids = [token for e in events for token in e["choices"][0].get("token_ids", [])]
        assert ids == expected
        prompt = last_spawn(kernel).prompt
        first = events[0] if path == CHAT else events[0]["choices"][0]
        assert tuple(first["prompt_token_ids"]) == prompt
        assert sum("prompt_token_ids" in str(event) for event in events) == 1


def test_token_times_are_returned(gateway: Gateway, kernel: KernelThread) -> None:
    """With return_token_times each of them comes with its time, in order; without, none does."""
    kernel.program = says("a🙂b")
    expected = [float(number) for number in range(len([*"a🙂b".encode(), END]))]
    for path, body in ((CHAT, hello()), (COMPLETIONS, {"prompt": [1, 2]})):
        assert "token_times" not in gateway.post(path, body).text
        asked = {**body, "return_token_times": True}
        assert gateway.post(path, asked).json()["choices"][0]["token_times"] == expected
        choices = [event["choices"][0] for event in events_of(gateway.post(path, {**asked, "stream": True}))]
        assert [each for choice in choices for each in choice.get("token_times", [])] == expected
        asked |= {"stop": "b", "return_token_ids": True}
        (choice,) = gateway.post(path, asked).json()["choices"]
        assert len(choice["token_times"]) == len(choice["token_ids"])


def test_template_is_applied(gateway: Gateway, kernel: KernelThread) -> None:
    """developer counts as system, parts are joined, the last text can be continued."""
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, "b"]},
    ]
    gateway.post(CHAT, {"messages": messages})
    expected = "<|system|>be kind<|end|><|user|>a\nb<|end|><|assistant|>"
    assert read_tokens(last_spawn(kernel).prompt) == expected
    gateway.post(CHAT, {"messages": messages, "add_generation_prompt": False})
    assert read_tokens(last_spawn(kernel).prompt) == expected.removesuffix("<|assistant|>")
    messages.append({"role": "assistant", "content": "Dear"})
    gateway.post(CHAT, {"messages": messages, "continue_final_message": True})
    assert read_tokens(last_spawn(kernel).prompt) == f"{expected}Dear"


def test_long_prompt_is_encoded_in_a_thread(gateway: Gateway, kernel: KernelThread) -> None:
    """A prompt too long to be encoded in place gives the same tokens."""
    text = "long " * 700
    gateway.post(CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 1})
    assert read_tokens(last_spawn(kernel).prompt) == f"<|user|>{text}<|end|><|assistant|>"


def test_models(gateway: Gateway, kernel: KernelThread) -> None:
    """The list and each entry describe what is served; names may hold slashes, encoded or not."""
    second = make_model(kernel.folder / "model", "org/second")
    kernel.call(lambda: kernel.kernel.models.append(second))
    try:
        found = gateway.get("/v1/models").json()
        assert [row["id"] for row in found["data"]] == ["scripted", "org/second"]
        assert found["object"] == "list"
        for path in ("/v1/models/org/second", "/v1/models/org%2Fsecond", "//v1//models/org/second/"):
            row = gateway.get(path).json()
            assert (row["id"], row["object"], row["max_model_len"]) == ("org/second", "model", CONTEXT)
        response = gateway.post(CHAT, hello())
        assert response.json()["error"]["param"] == "model"  # which of the two?
        response = gateway.post(CHAT, hello(model="org/second"))
        assert response.json()["model"] == "org/second"
        assert last_spawn(kernel).model == "org/second"
        assert response.json()["system_fingerprint"].startswith("fp")
    finally:
        kernel.call(kernel.kernel.models.pop)
        gateway.get("/v1/models")  # the gateway has seen it go
    assert gateway.get("/v1/models/org/second").json()["error"]["code"] == "model_not_found"


def test_paths_are_forgiving(gateway: Gateway) -> None:
    """Trailing and doubled slashes are tolerated everywhere."""
    for path in ("/v1/chat/completions/", "//v1/chat//completions", "/v1/chat/completions"):
        assert gateway.post(path, hello()).status_code == 200
    for path in ("/health", "/ping", "/health/", "/health/ready", "/version", "/metrics/"):
        assert gateway.get(path).status_code == 200
    for target in ("http://elsewhere/ping?a=b", "HTTPS://a:9/health", "http://a/v1/models/scripted"):
        with gateway.connect() as raw:  # a proxy asks so
            raw.sendall(http_request(target, b"", "GET"))
            assert read_until(raw, b"\r\n").startswith(b"HTTP/1.1 200")


def test_a_refusal_is_what_was_said(gateway: Gateway, kernel: KernelThread) -> None:
    """An answer of another server that has one in place of its content may be sent back."""
    for answer in ({"content": None, "refusal": "no"}, {"refusal": "no"}, {"content": "no"}):
        messages = [{"role": "assistant", **answer}, {"role": "user", "content": "a"}]
        assert gateway.post(CHAT, {"messages": messages}).status_code == 200
    assert len({process.spawn.prompt for process in kernel.kernel.spawned[-3:]}) == 1


def test_metrics_page(gateway: Gateway, kernel: KernelThread) -> None:
    """The page has our counters and the kernel's, and no label that grows without bound."""
    gateway.post(CHAT, hello(), headers={"x-request-id": "never-in-metrics"})
    gateway.get("/no/such/page/never-in-metrics")
    page = gateway.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'llmos_gateway_requests_total{endpoint="chat.completions",status="200"}' in page.text
    assert "llmos_gateway_time_to_first_token_seconds_count" in page.text
    assert "llmos_gateway_inter_token_seconds_bucket" in page.text
    assert "llmos_gateway_requests_in_flight 0.0" in page.text
    assert "llmos_processes 1" in page.text
    assert "never-in-metrics" not in page.text


def _score_program(text: str = "") -> Any:
    """Scores each byte of the prompt, says a text, each byte less likely than the one before."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        process.prompt_logprobs = tuple(
            TokenLogprobs(-float(token), (token, 98), (-float(token), -200.0), rank=3)
            for token in process.tokens[1:]
        )
        for index, token in enumerate(text.encode()):
            found = TokenLogprobs(-0.5 - index - process.sample, (token,), (-0.5 - index - process.sample,))
            await process.emit(token, logprobs=(found,))
        return ExitStatus("length")

    return program


@pytest.mark.parametrize("max_tokens", [0, 2])
def test_echo_with_logprobs(gateway: Gateway, kernel: KernelThread, max_tokens: int) -> None:
    """The lists cover the prompt, whose first entry is null, then the generated tokens; streamed alike."""
    kernel.program = _score_program("yz"[:max_tokens])
    body = {"prompt": ["abc", "de", "q"], "echo": True, "logprobs": 1, "max_tokens": max_tokens, "n": 2}
    whole = gateway.post(COMPLETIONS, body).json()["choices"]
    events = [event["choices"][0] for event in events_of(gateway.post(COMPLETIONS, {**body, "stream": True}))]
    assert [choice["index"] for choice in whole] == list(range(6))
    for choice, prompt in zip(whole, ["abc", "abc", "de", "de", "q", "q"], strict=True):
        found, text = choice["logprobs"], prompt + "yz"[:max_tokens]
        assert (choice["text"], found["tokens"]) == (text, list(text))
        assert found["text_offset"] == list(range(len(text)))
        values = [-float(ord(character)) for character in prompt[1:]]
        generated = [-0.5 - i - choice["index"] % 2 for i in range(max_tokens)]
        assert found["token_logprobs"] == [None, *values, *generated]
        assert found["top_logprobs"][0] is None
        for character, value, top in list(
            zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
        )[1:]:
            assert top[character] == value
        rows = [event for event in events if event["index"] == choice["index"]]
        assert "".join(row["text"] for row in rows) == text
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            parts = [row["logprobs"][name] for row in rows if row["logprobs"]]
            assert [entry for part in parts for entry in part] == found[name]


def test_prompt_logprobs(gateway: Gateway, kernel: KernelThread) -> None:
    """By token id, with rank and text; a choice's own for completions, the response's for chat."""
    kernel.program = _score_program("x")
    (choice,) = gateway.post(COMPLETIONS, {"prompt": "ab", "prompt_logprobs": 0, "max_tokens": 1}).json()[
        "choices"
    ]
    assert choice["prompt_logprobs"] == [None, {"98": {"logprob": -98.0, "rank": 3, "decoded_token": "b"}}]
    assert choice["logprobs"] is None
    answer = gateway.post(CHAT, hello(prompt_logprobs=2, max_tokens=1)).json()
    assert len(answer["prompt_logprobs"]) == len(last_spawn(kernel).prompt)
    refused = gateway.post(CHAT, hello(prompt_logprobs=2, stream=True))
    assert refused.json()["error"]["param"] == "prompt_logprobs"


def test_best_of_are_the_likeliest(gateway: Gateway, kernel: KernelThread) -> None:
    """By mean log-probability, numbered anew; usage counts all that were sampled."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        found = TokenLogprobs((-3.0, -1.0, -2.0)[process.sample])
        await process.emit(ord("abc"[process.sample]), logprobs=(found,))
        return ExitStatus("length")

    kernel.program = program
    body = {"prompt": ["x", "y"], "best_of": 3, "n": 2, "max_tokens": 1}
    answer = gateway.post(COMPLETIONS, body).json()
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "b"), (1, "c"), (2, "b"), (3, "c")]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 6
    refused = gateway.post(COMPLETIONS, {**body, "stream": True})
    assert refused.json()["error"]["param"] == "best_of"


def test_tokens_as_ids(gateway: Gateway, kernel: KernelThread) -> None:
    """`return_tokens_as_token_ids` tells tokens with equal text apart."""
    kernel.program = _logprob_program("a")
    body = {"return_tokens_as_token_ids": True, "max_tokens": 1}
    (choice,) = gateway.post(COMPLETIONS, {"prompt": "x", "logprobs": 1, **body}).json()["choices"]
    assert choice["logprobs"]["tokens"] == ["token_id:97"]
    assert choice["logprobs"]["top_logprobs"] == [{"token_id:97": -0.25}]
    (choice,) = gateway.post(CHAT, hello(logprobs=True, top_logprobs=2, **body)).json()["choices"]
    (entry,) = choice["logprobs"]["content"]
    assert (entry["token"], entry["bytes"]) == ("token_id:97", [97])
    assert [top["token"] for top in entry["top_logprobs"]] == ["token_id:97", "token_id:98"]


def test_prompts_are_truncated_from_the_left(gateway: Gateway, kernel: KernelThread) -> None:
    """`truncate_prompt_tokens` keeps the last ones; -1 keeps what fits."""
    kernel.program = says("!")
    body = {"prompt": "abcdef", "truncate_prompt_tokens": 2, "echo": True}
    assert gateway.post(COMPLETIONS, body).json()["choices"][0]["text"] == "ef!"
    assert read_tokens(last_spawn(kernel).prompt) == "ef"
    body = {"prompt": "x" * (CONTEXT + 10), "truncate_prompt_tokens": -1, "max_tokens": 6}
    assert gateway.post(COMPLETIONS, body).status_code == 200
    assert len(last_spawn(kernel).prompt) == CONTEXT - 6


def test_cache_salt_and_no_cache(gateway: Gateway, kernel: KernelThread) -> None:
    """A salt goes to the kernel; without `cache_prompt` it is one that nobody else has."""
    gateway.post(CHAT, hello(cache_salt="s"))
    assert last_spawn(kernel).cache_salt == "s"
    salts = set()
    for _ in range(2):
        gateway.post(CHAT, hello(cache_salt="s", cache_prompt=False))
        salts.add(last_spawn(kernel).cache_salt)
    assert len(salts) == 2
    assert all(salt.startswith("s:") for salt in salts)


@pytest.mark.parametrize(
    ("path", "body"),
    [(CHAT, hello()), (COMPLETIONS, {"prompt": [1, 2]}), ("/v1/responses", {"input": "hi", "store": False})],
)
def test_a_pin_reaches_the_kernel(
    gateway: Gateway, kernel: KernelThread, path: str, body: dict[str, Any]
) -> None:
    """Of every kind of request; without it nothing is pinned."""
    for wish, expected in (({"pin_ttl_s": 90}, 90.0), ({}, 0.0), ({"pin_ttl_s": None}, 0.0)):
        assert gateway.post(path, {**body, **wish}).status_code == 200
        assert last_spawn(kernel).pin_seconds == expected


@pytest.mark.parametrize("name", ["request_id", "rid"])
def test_a_request_names_itself(gateway: Gateway, kernel: KernelThread, name: str) -> None:
    """The body's id is the response's and the process's label."""
    response = gateway.post(CHAT, hello(**{name: "mine-7"}), headers={"x-request-id": "other"})
    assert response.headers["x-request-id"] == "mine-7"
    assert last_spawn(kernel).label == "mine-7"


def test_timings(gateway: Gateway, kernel: KernelThread) -> None:
    """Only on demand: whole, on every chunk of a stream, and both kinds with its usage."""
    kernel.program = says("abc", end=ExitStatus("length"))
    body = {"prompt": "xy", "max_tokens": 3, "timings_per_token": True}
    plain = gateway.post(COMPLETIONS, {**body, "timings_per_token": False}).json()
    assert not {"metrics", "timings"} & plain.keys()
    whole = gateway.post(COMPLETIONS, body).json()
    assert (whole["timings"]["predicted_n"], whole["timings"]["prompt_n"]) == (3, 2)
    metrics = whole["metrics"]
    assert metrics["time_to_first_token_ms"] >= 0
    assert (metrics["migrations"], metrics["spec_accept_rate"], metrics["preempted_ms"]) == (0, None, 0)
    events = events_of(
        gateway.post(COMPLETIONS, {**body, "stream": True, "stream_options": {"include_usage": True}})
    )
    counts = [event["timings"]["predicted_n"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    assert ["metrics" in event for event in events] == [False] * (len(events) - 1) + [True]


@pytest.mark.parametrize("is_streaming", [False, True])
def test_a_limit_of_time_waits_for_a_line(gateway: Gateway, kernel: KernelThread, is_streaming: bool) -> None:
    """Over `t_max_predict_ms` a choice ends with reason length, once it has output a newline."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        await process.say("one")
        while True:  # until it is killed; the gateway may be late with its clock, and see a line too early
            await process.wait_read()
            await trio.sleep(0.02)  # longer than allowed
            await process.say(" line\n")

    kernel.program = program
    body = {"prompt": "x", "max_tokens": 500, "t_max_predict_ms": 5}
    if is_streaming:
        events = events_of(gateway.post(COMPLETIONS, {**body, "stream": True}))
        text = "".join(event["choices"][0]["text"] for event in events)
        reason = events[-1]["choices"][0]["finish_reason"]
    else:
        (choice,) = gateway.post(COMPLETIONS, body).json()["choices"]
        text, reason = choice["text"], choice["finish_reason"]
    assert text.startswith("one line\n")
    assert ("one" + 5000 * " line\n").startswith(text)
    assert reason == "length"
    kernel.wait_until(lambda: any(isinstance(call, Kill) for call in kernel.kernel.calls))
