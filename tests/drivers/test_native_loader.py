"""Which format a model gets on the CPU: the one asked for, or the fastest that a measurement allows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file, save_file

from drivers.model import native_loader
from drivers.model.errors import ModelError
from drivers.model.loader import open_model
from drivers.model.native_loader import load_native
from drivers.model.native_transformer import NativeTransformer
from drivers.model.quality import SAMPLE_TEXT, measure_quality, read_tokens
from drivers.ops.batch import ContiguousPages
from llmos.device import Load, Quality, Row, choose_kv_format
from native.variant import best_variant
from tests.drivers.model_zoo import JUNK, load_request, random_model

BUILTIN = Path(__file__).parents[2] / "drivers" / "builtin" / "draft"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("LLMOS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(path: Path = BUILTIN, **wanted: object) -> tuple[NativeTransformer, Quality | None]:
    """Load as a driver would."""
    request = load_request(path)
    values = {name: getattr(request, name) for name in request.__struct_fields__}
    return load_native(open_model(path), Load(**(values | wanted)), 2, lambda *report: None)


def test_auto_takes_the_fastest_that_is_close_enough():
    """Each border of the tolerance: below what w8a8 costs, exactly that, and what w4a8 costs."""
    costs = {weights: load(weights=weights)[1] for weights in ("w8a8", "w4a8")}
    eight, four = costs["w8a8"].kl_divergence, costs["w4a8"].kl_divergence
    assert 0 < eight < four
    for tolerance, expected, quality in (
        (0.0, "fp32", None), (np.nextafter(eight, 0), "fp32", None), (eight, "w8a8", costs["w8a8"]),
        (np.nextafter(four, 0), "w8a8", costs["w8a8"]), (four, "w4a8", costs["w4a8"]),
    ):  # fmt: skip
        model, found = load(weights="auto", max_divergence=float(tolerance))
        published = open_model(BUILTIN).config.dtype
        assert model.info.dtype == (published if expected == "fp32" else expected)
        assert found == quality
        assert model.info.kernels == f"native-{best_variant()}"


def test_keys_go_with_the_weights_unless_told_otherwise():
    """fp16 beside integers, the weights' own format beside floats, and any other that is asked for."""
    assert load(weights="w8a8")[0].info.kv == "fp16"
    assert load(weights="bf16")[0].info.kv == "bf16"
    model, quality = load(weights="w8a8", kv="int8")
    assert (model.info.kv, quality.kv) == ("int8", "int8")
    model, quality = load(weights="fp32", kv="int8")
    assert (model.info.dtype, model.info.kv, quality) == ("fp32", "int8", None)


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        (
            {"weights": "int3"},
            "weights 'int3' are not supported; supported: auto, fp32, fp16, bf16, w8a8,",
        ),
        ({"kv": "int4"}, "kv 'int4' is not supported; supported: auto"),
        ({"weights": "w8a8", "quality_text": "/no/such/text"}, "quality text /no/such/text: No such file"),
    ],
)
def test_what_cannot_be_is_refused_by_name(wanted, part):
    """The message names the format or the file, and what there is instead."""
    with pytest.raises(ModelError) as refusal:
        load(**wanted)
    assert part in str(refusal.value)


def test_a_text_that_is_none_is_refused(tmp_path):
    """Bytes that are not UTF-8, and a text of one token."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "empty").write_text("")
    for name in ("bytes", "empty"):
        with pytest.raises(ModelError, match=f"quality text .*{name}"):
            load(weights="w8a8", quality_text=str(tmp_path / name))


def test_a_weight_that_is_not_finite_has_no_integer(tmp_path):
    """Refused with the tensor's name where it is asked for; `auto` does not get that far either."""
    shutil.copytree(BUILTIN, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("layers.0.mlp.down_proj.weight"))
    tensors[name][0, 0] = float("inf")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.0\.down holds a weight that is not finite; w8a8"):
        load(tmp_path / "model", weights="w8a8")
    assert load(tmp_path / "model", weights="fp32")[0].info.dtype == "fp32"


def test_quality_is_measured_once(monkeypatch, cache):
    """Remembered for a model, a format and a text; measured again for another text, or when illegible."""
    measured = []

    def count(*given: object) -> Quality:
        measured.append(given)
        return measure_quality(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(native_loader, "measure_quality", count)
    _, first = load(weights="w8a8")
    assert load(weights="w8a8")[1] == first
    assert len(measured) == 1
    (file,) = (cache / "quality").iterdir()
    file.write_text("{")
    assert load(weights="w8a8")[1] == first
    assert len(measured) == 2
    text = cache / "text"
    text.write_text(SAMPLE_TEXT.read_text()[200:800])
    _, other = load(weights="w8a8", quality_text=str(text))
    assert len(measured) == 3
    assert other.text == "text"
    assert other != first


def test_divergence_is_what_the_definition_says():
    """Kullback-Leibler over whole distributions, and agreement of the largest, against NumPy."""
    reference, candidate = (random_model(dtype, native_threads=1) for dtype in ("fp32", "w4a8"))
    tokens = tuple(np.random.default_rng(1).integers(0, 101, 75).tolist())
    quality = measure_quality(reference, candidate, tokens, "a text")
    p, q = (np.exp(log_probabilities(model, tokens)) for model in (reference, candidate))
    assert quality.kl_divergence == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-9)
    assert quality.top1_agreement == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert (quality.weights, quality.kv, quality.num_tokens, quality.text) == ("w4a8", "fp16", 75, "a text")
    assert measure_quality(reference, reference, tokens, "").kl_divergence == 0
    assert measure_quality(reference, reference, tokens, "").top1_agreement == 1


def log_probabilities(model: NativeTransformer, tokens: tuple[int, ...]) -> np.ndarray:
    """At each position, from prefixes that are run one by one."""
    kv = choose_kv_format(model.info.kv, model.segments, 128 * model.segments[0].bytes_per_token)
    logits = []
    for length in range(1, len(tokens) + 1):
        frames = [torch.full((kv.num_pages(128) * kv.frame_bytes,), JUNK, dtype=torch.uint8) for _ in "KV"]
        pages = model.view_pages(frames, kv, ContiguousPages(kv.num_pages(128)))
        rows = [Row(0, 0, tokens[:length], True)]
        logits.append(model.run(rows, pages)[0].double().numpy())
    found = np.stack(logits)
    found -= found.max(axis=1, keepdims=True)
    result: np.ndarray = found - np.log(np.exp(found).sum(axis=1, keepdims=True))
    return result


def test_a_model_without_a_tokenizer_is_measured_on_random_tokens(tmp_path):
    """And says so."""
    assert read_tokens(SAMPLE_TEXT, tmp_path, 50, 20)[1] == "random tokens"
    ids, name = read_tokens(SAMPLE_TEXT, BUILTIN, 10**6, 20)
    assert (len(ids), name) == (20, "sample.txt")
    with pytest.raises(ModelError, match="no tokens of this model"):
        read_tokens(SAMPLE_TEXT, BUILTIN, 3, 20)


def test_describing_a_model_leaves_its_configuration_alone():
    """The formats of one load do not show in the next."""
    opened = open_model(BUILTIN)
    infos = [opened.describe(weights, "fp16") for weights in ("w8a8", "w4a8")]
    assert evolve(infos[0], dtype="w4a8") == infos[1]
    assert json.loads((BUILTIN / "config.json").read_text())["vocab_size"] == infos[0].vocab_size
