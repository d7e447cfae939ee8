"""Vectors of texts: those of transformers; the same bits however an input is cut and whatever runs beside."""

from __future__ import annotations

import functools
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from model_zoo import FAMILIES, Memory, load_model, load_native, random_model, save_checkpoint

from drivers.cpu import CpuDriver
from drivers.engine import Engine
from drivers.model.embedding_config import describe_embedding
from drivers.model.errors import ModelError
from drivers.model.pooler import Pooler
from drivers.model.transformer import Model
from llmos.device import (
    Bind,
    Edit,
    EmbeddingInfo,
    Load,
    Loaded,
    Map,
    Pooling,
    Release,
    Reserve,
    Row,
    Sampling,
    Step,
)  # fmt: skip

model_of = functools.cache(random_model)
NUM_SPACES = 9


def tokens_of(seed: int, num_tokens: int) -> tuple[int, ...]:
    """Pseudo-random token ids."""
    return tuple(torch.randint(101, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist())


def bind_pooling(asid: int, pooling: Pooling) -> Bind:
    """What makes a space end with a vector."""
    return Bind(asid, Sampling(seed=0), (), 0, pooling=pooling)


def embed(
    model: Model,
    tokens: tuple[int, ...],
    pooling: Pooling,
    cut: list[int],
    company: list[int] = [],  # noqa: B006 - never changed
    place: int = 0,
    losses: set[int] = set(),  # noqa: B006 - never changed
) -> bytes:
    """A vector by chunks of these sizes, among prompts of others; its memory is lost before some steps."""
    memory, pooler = Memory(model, NUM_SPACES), Pooler()
    pooler.bind(bind_pooling(0, pooling))
    start = step = num_summed = 0
    vector: bytes | None = None
    while start < len(tokens):
        if step in losses:
            memory, pooler, start = Memory(model, NUM_SPACES), Pooler(), 0
            bind = bind_pooling(0, pooling)
            if vector is not None:
                bind = msgspec.structs.replace(bind, num_summed=num_summed, total=vector)
            pooler.bind(bind)
        size = min(cut[step % len(cut)], len(tokens) - start)
        row = Row(0, start, tokens[start : start + size], False, (), start + size == len(tokens))
        rows = [Row(1 + i, 0, tokens_of(i, n), i % 2 == 0) for i, n in enumerate(company)]
        rows.insert(min(place, len(rows)), row)
        first = sum(other.num_tokens for other in rows[: rows.index(row)])
        assert pooler.explain_bad_row(row) is None
        told = [first + index for index in pooler.wanted(row)]
        draws = [None] * sum(other.sample for other in rows)
        _, hidden = model.choose_and_tell(rows, memory.pages, draws, told)
        vector = pooler.take(row, hidden) or vector
        start, step = start + size, step + 1
        num_summed = max(num_summed, start)
    assert vector is not None
    return vector


@functools.cache
def quiet_vector(
    dtype: str, kv: str | None, native_threads: int, seed: int, num_tokens: int, pooling: Pooling
) -> bytes:
    """An input alone and in one piece, on one thread."""
    model = model_of(dtype, native_threads=min(1, native_threads), kv=kv)
    return embed(model, tokens_of(seed, num_tokens), pooling, [num_tokens])


@pytest.mark.parametrize(
    ("dtype", "kv", "native_threads"),
    [("fp32", None, 0), ("fp32", None, 1), ("bf16", None, 2), ("w8a8", "int8", 2), ("w4a8", None, 1)],
)
def test_chunks_company_and_losses_change_no_bit(dtype: str, kv: str | None, native_threads: int) -> None:
    """A vector has the bits of a quiet run, whatever rides along, however it is cut, whatever is lost."""

    @settings(max_examples=25)
    @given(
        num_tokens=st.integers(1, 150),
        kind=st.sampled_from(["last", "mean"]),
        normalise=st.booleans(),
        cut=st.lists(st.integers(1, 70), min_size=1, max_size=5),
        company=st.lists(st.integers(1, 40), max_size=NUM_SPACES - 1),
        place=st.integers(0, 8),
        losses=st.sets(st.integers(0, 6), max_size=2),
    )
    @example(num_tokens=40, kind="mean", normalise=False, cut=[1], company=[3], place=1, losses={5, 9})
    @example(num_tokens=129, kind="mean", normalise=True, cut=[64], company=[], place=0, losses={2})
    def check(
        num_tokens: int,
        kind: str,
        normalise: bool,
        cut: list[int],
        company: list[int],
        place: int,
        losses: set[int],
    ) -> None:
        seed, pooling = num_tokens % 5, Pooling(kind, normalise)
        model = model_of(dtype, native_threads=native_threads, kv=kv)
        got = embed(model, tokens_of(seed, num_tokens), pooling, cut, company, place, losses)
        assert got == quiet_vector(dtype, kv, native_threads, seed, num_tokens, pooling)
        numbers = np.frombuffer(got, "<f4")
        assert numbers.shape == (72,)
        if normalise:
            assert np.linalg.norm(numbers) == pytest.approx(1, abs=1e-6)

    check()


@pytest.mark.parametrize("load", [load_model, load_native], ids=["torch", "native"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_vectors_are_those_of_transformers(load: object, architecture: str, tmp_path: Path) -> None:
    """The last hidden state behind the norm, and the mean of all: cosine above 0.9999, and equal in size."""
    import transformers

    save_checkpoint(tmp_path, architecture)
    oracle = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    model = load(tmp_path)
    tokens = tuple(torch.randint(131, (90,), generator=torch.Generator().manual_seed(2)).tolist())
    with torch.no_grad():
        states = oracle(torch.tensor([tokens])).last_hidden_state[0].numpy()
    for kind, expected in (("last", states[-1]), ("mean", states.mean(axis=0))):
        got = np.frombuffer(embed(model, tokens, Pooling(kind, normalise=False), [33]), "<f4")
        cosine = got @ expected / np.linalg.norm(got) / np.linalg.norm(expected)
        assert cosine > 0.9999
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine on native/cpu with a random Llama whose embedding of token 99 is NaN."""
    folder = tmp_path_factory.mktemp("llama")
    save_checkpoint(folder, "LlamaForCausalLM")
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][99] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    made = Engine(CpuDriver(), debug=True)
    load = Load(
        path=str(folder), name="test", weights="fp32", kv="auto", pool_bytes=1 << 20, frame_bytes=None,
        max_spaces=4, max_model_len=None, max_step_tokens=64,
    )  # fmt: skip
    loaded = made.load(load, lambda *report: None)
    assert isinstance(loaded, Loaded)
    assert loaded.model.embedding == EmbeddingInfo(64, ("last", "mean"))
    return made


def open_space(asid: int, pooling: Pooling | None = None) -> tuple[Edit, ...]:
    """A space with its pages, bound."""
    frames = tuple((4 * asid + 2 * vpn, 4 * asid + 2 * vpn + 1) for vpn in range(2))
    bind = Bind(asid, Sampling(), (1,), 1) if pooling is None else bind_pooling(asid, pooling)
    return (Reserve(asid), *(Map(asid, vpn, pfns) for vpn, pfns in enumerate(frames)), bind)


def test_a_step_of_all_kinds(engine: Engine) -> None:
    """Vectors beside sampled tokens, an input goes on where it was; a bad one fails alone."""
    mean, last = Pooling("mean"), Pooling("last", normalise=False)
    tokens = tuple(range(10, 50))
    edits = (*open_space(0, mean), *open_space(1, last), *open_space(2), *open_space(3, mean))
    rows = (Row(0, 0, tokens[:25], False), Row(1, 0, tokens, False, (), True), Row(2, 0, (1, 2), True))
    first = engine.run_step(Step(1, edits, rows))
    assert (first.faults, [v is not None for v in first.vectors]) == ((), [True, True, False])
    assert [token is not None for token in first.tokens] == [False, False, True]
    assert len(first.vectors[1] or b"") == 4 * 64
    second = engine.run_step(
        Step(2, (), (Row(3, 0, (98, 99), False, (), True), Row(0, 25, tokens[25:], False, (), True)))
    )
    assert [(fault.row, fault.message) for fault in second.faults] == [
        (0, "64 of 64 numbers of the vector are not finite")
    ]
    assert second.vectors[0] is None
    # once more, in one piece
    third = engine.run_step(Step(3, (bind_pooling(0, mean),), (Row(0, 0, tokens, False, (), True),)))
    assert third.vectors == (second.vectors[1],)
    releases = tuple(Release(asid) for asid in range(4))
    bad = engine.run_step(
        Step(
            4,
            (),
            (
                Row(0, 41, (1,), False, (), True),
                Row(3, 0, (1,), False, (), True),
                Row(2, 2, (1,), False, (), True),
            ),
        )
    )
    assert [fault.message for fault in bad.faults] == [
        "space 0 has summed 40 positions; the row starts at 41",
        "space 3 has summed 2 positions, and its input ends before",
        "space 2 makes no vector",
    ]  # fmt: skip
    assert engine.run_step(Step(5, releases, ())).faults == ()
    assert engine._session is not None
    assert engine._session.pooler.num_spaces == 0


def write_pooling(folder: Path, **switched: object) -> None:
    """The files by which sentence-transformers knows how a model pools."""
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "modules.json").write_text(
        '[{"path": "", "type": "sentence_transformers.models.Transformer"},'
        ' {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]'
    )
    lines = ", ".join(f'"{name}": {str(value).lower()}' for name, value in switched.items())
    (folder / "1_Pooling" / "config.json").write_text(f"{{{lines}}}")


def test_a_folder_says_how_it_pools(tmp_path: Path) -> None:
    """Its pooling comes first, the sizes it may be cut to are told; what cannot be is refused by name."""
    kinds = ("last", "mean")
    assert describe_embedding(tmp_path, 64, kinds) == EmbeddingInfo(64, kinds)
    write_pooling(
        tmp_path, word_embedding_dimension=64, pooling_mode_mean_tokens=True, pooling_mode_cls_token=False
    )
    (tmp_path / "config.json").write_text('{"is_matryoshka": true}')
    assert describe_embedding(tmp_path, 64, kinds) == EmbeddingInfo(64, ("mean", "last"), (), True)
    (tmp_path / "config.json").write_text('{"is_matryoshka": true, "matryoshka_dimensions": [32, 16]}')
    assert describe_embedding(tmp_path, 64, kinds) == EmbeddingInfo(64, ("mean", "last"), (16, 32))
    (tmp_path / "config.json").write_text('{"matryoshka_dimensions": [128]}')
    with pytest.raises(ModelError, match=r"matryoshka_dimensions is \[128\]"):
        describe_embedding(tmp_path, 64, kinds)
    write_pooling(tmp_path, pooling_mode_cls_token=True)
    with pytest.raises(ModelError, match="pooling 'cls' is not supported; supported: last, mean"):
        describe_embedding(tmp_path, 64, kinds)
    write_pooling(tmp_path, pooling_mode_max_tokens=True)
    with pytest.raises(ModelError, match="pooling_mode_max_tokens is switched on"):
        describe_embedding(tmp_path, 64, kinds)
