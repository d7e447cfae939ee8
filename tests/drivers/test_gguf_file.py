"""GGUF files: what is read from them, bit for bit, and how the malformed ones are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_files import SCALES, add_tensor, dequantised, random_blocks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivers.model.errors import ModelError
from drivers.model.gguf.checkpoint import CHUNK_VALUES, GgufCheckpoint
from drivers.model.gguf.dequantise import dequantise
from drivers.model.gguf.file import GgufFile
from drivers.model.gguf.names import hugging_face_name
from drivers.model.gguf.storage import STORAGE

FLOATS = ("F32", "F16", "BF16")
STORAGE_BY_NAME = {storage.name: storage for storage in STORAGE.values()}


def write(path: Path, tensors: dict[str, tuple[np.ndarray, str]], parts: int = 0, **metadata: str) -> Path:
    """Write a file of tensors, each of values or of blocks in some format."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=parts)
    for key, value in metadata.items():
        writer.add_string(key, value)
    for name, (values, kind) in tensors.items():
        if values.dtype == np.uint8:
            writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            add_tensor(writer, name, values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def normal(*size: int, seed: int = 0) -> np.ndarray:
    """Random values, fp32."""
    return np.random.default_rng(seed).normal(0, 0.1, size).astype(np.float32)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The bytes of a small file, with a string, an array and three tensors."""
    path = tmp_path_factory.mktemp("plain") / "plain.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ü"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5, 2.5])
    for name, kind in (
        ("token_embd.weight", "F32"),
        ("blk.0.attn_q.weight", "Q8_0"),
        ("output.weight", "BF16"),
    ):
        add_tensor(writer, name, normal(4, 32), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def read_everything(path: Path) -> None:
    """Open a file and read all its tensors."""
    file = GgufFile.open(path)
    checkpoint = GgufCheckpoint.open(file, 2, 1)
    for name in checkpoint.tensors:
        checkpoint.read(name)
    checkpoint.content_hash()


# --- formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCALES)
def test_blocks_mean_what_the_format_says(kind):
    """Every value of random blocks has the bits that the ggml project's own decoder gives."""
    blocks = random_blocks(kind, 64, seed=1)
    found = dequantise(bytearray(blocks.tobytes()), STORAGE_BY_NAME[kind])
    assert torch.equal(found.view(torch.int32), dequantised(blocks, kind).flatten().view(torch.int32))


def test_every_format_has_its_size():
    """Blocks have the sizes that the ggml project states."""
    assert len(STORAGE) == len(SCALES) + len(FLOATS)
    for number, storage in STORAGE.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (storage.name, *gguf.GGML_QUANT_SIZES[kind]) == (
            kind.name,
            storage.block_values,
            storage.block_bytes,
        )


@pytest.mark.parametrize("kind", [*FLOATS, *SCALES])
def test_tensors_are_read_whole(tmp_path, kind):
    """Floating point is read as it is stored, blocks as fp32, a chunk at a time where there are many."""
    if kind in FLOATS:
        values = normal(48, 96)
        stored = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        expected = torch.from_numpy(values).to(stored)
    else:
        # more values than are decoded at a time, and not a multiple of that
        values = random_blocks(kind, 3 * (CHUNK_VALUES // STORAGE_BY_NAME[kind].block_values // 2 - 5), 2)
        values = values.reshape(3, -1)
        expected = dequantised(values, kind)
    path = write(
        tmp_path / "m.gguf", {"output_norm.weight": (normal(32), "F32"), "output.weight": (values, kind)}
    )
    checkpoint = GgufCheckpoint.open(GgufFile.open(path), 2, 1)
    entry = checkpoint.tensors["lm_head.weight"]
    assert entry.shape == tuple(expected.shape)
    assert entry.dtype == kind
    found = checkpoint.read("lm_head.weight")
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_names_are_translated():
    """Names that the ggml project's table gives to tensors are translated back; others are left alone."""
    for architecture in (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.QWEN2, gguf.MODEL_ARCH.QWEN3):
        table = gguf.get_tensor_name_map(architecture, 12)
        for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
            assert hugging_face_name(table.get_name(name, (".weight",))) == name
        for part in (
            "input_layernorm",
            "self_attn.q_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.down_proj",
        ):
            for kind in ("weight", "bias"):
                name = f"model.layers.11.{part}.{kind}"
                assert hugging_face_name(table.get_name(name, (".weight", ".bias"))) == name
    assert hugging_face_name("blk.3.attn_sinks.weight") == "blk.3.attn_sinks.weight"
    assert hugging_face_name("output.weight.extra") == "output.weight.extra"


def test_heads_are_put_in_order(tmp_path):
    """Rows of queries and keys come as halves of each head, not pairwise; a part of a head is refused."""
    rows = np.arange(8, dtype=np.float32).reshape(8, 1).repeat(32, axis=1)
    names = ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight")
    path = write(tmp_path / "m.gguf", {name: (rows, "F32") for name in names})
    checkpoint = GgufCheckpoint.open(GgufFile.open(path), 2, 1)
    order = [
        checkpoint.read(f"model.layers.0.self_attn.{part}_proj.weight")[:, 0].int().tolist() for part in "qkv"
    ]
    assert order == [[0, 2, 1, 3, 4, 6, 5, 7], [0, 2, 4, 6, 1, 3, 5, 7], [0, 1, 2, 3, 4, 5, 6, 7]]
    with pytest.raises(ModelError, match=r"attn_q\.weight \[8, 32\] is not 3 heads"):
        GgufCheckpoint.open(GgufFile.open(path), 3, 1).read("model.layers.0.self_attn.q_proj.weight")


def test_the_hash_follows_the_contents(tmp_path):
    """A file's hash does not depend on its name, and changes with a single bit of a weight."""
    path = write(tmp_path / "a.gguf", {"output.weight": (normal(4, 32), "F32")})
    data = bytearray(path.read_bytes())
    (tmp_path / "b.gguf").write_bytes(data)
    data[-1] ^= 1
    (tmp_path / "c.gguf").write_bytes(data)
    first, same, other = (
        GgufCheckpoint.open(GgufFile.open(tmp_path / name), 2, 1).content_hash()
        for name in ("a.gguf", "b.gguf", "c.gguf")
    )
    assert first == same != other


# --- parts --------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path):
    """Four tensors in two files."""
    tensors = {f"blk.{layer}.ffn_up.weight": (normal(4, 32, seed=layer), "F32") for layer in range(4)}
    write(tmp_path / "m.gguf", tensors, parts=2)
    found = sorted(tmp_path.iterdir())
    assert [path.name for path in found] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    return found


def test_parts_are_joined(parts):
    """A model in several files is opened by the first, and all its tensors are there."""
    checkpoint = GgufCheckpoint.open(GgufFile.open(parts[0]), 2, 1)
    for layer in range(4):
        found = checkpoint.read(f"model.layers.{layer}.mlp.up_proj.weight")
        assert torch.equal(found, torch.from_numpy(normal(4, 32, seed=layer)))
    assert {entry.file for entry in checkpoint.tensors.values()} == set(parts)


def test_parts_must_be_whole(parts):
    """A later part opened alone, a missing one, a renamed one and a foreign one are refused by name."""
    with pytest.raises(ModelError, match=r"00002-of-00002\.gguf is not the first of 2 parts"):
        GgufFile.open(parts[1])
    renamed = parts[0].with_name("m.gguf")
    renamed.write_bytes(parts[0].read_bytes())
    with pytest.raises(ModelError, match=r"m\.gguf is one of 2 parts, but its name"):
        GgufFile.open(renamed)
    data = parts[1].read_bytes()
    parts[1].write_bytes(parts[0].read_bytes())
    with pytest.raises(ModelError, match=r"00002-of-00002\.gguf: split.no is 0"):
        GgufFile.open(parts[0])
    parts[1].write_bytes(data[:-1])
    with pytest.raises(ModelError, match=r"00002-of-00002\.gguf is truncated: tensor blk\.3\.ffn_up\.weight"):
        GgufFile.open(parts[0])
    parts[1].unlink()
    with pytest.raises(ModelError, match=r"00002-of-00002\.gguf cannot be read: No such file"):
        GgufFile.open(parts[0])


def test_parts_must_not_repeat_or_lack_tensors(parts, tmp_path):
    """A tensor in two parts, and another number of tensors than the first part states, are refused."""
    data = parts[1].read_bytes()
    parts[1].write_bytes(data.replace(b"blk.2.", b"blk.1."))
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight is in m-00001-of-00002\.gguf too"):
        GgufFile.open(parts[0])
    parts[1].write_bytes(data)
    data = parts[0].read_bytes()
    key = b"split.tensors.count" + struct.pack("<I", 5)
    assert key in data
    parts[0].write_bytes(data.replace(key + struct.pack("<i", 4), key + struct.pack("<i", 5)))
    with pytest.raises(ModelError, match="4 tensors in 2 parts; it states 5"):
        GgufFile.open(parts[0])


# --- refusals -----------------------------------------------------------------------------------------------


def header(
    *metadata: bytes, num_values: int | None = None, tensors: tuple[bytes, ...] = (), num_tensors=None
):
    """The bytes of a header, put together by hand."""
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(metadata) if num_values is None else num_values,
    )
    return b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join((*metadata, *tensors))


def text(value: bytes, length: int | None = None) -> bytes:
    """A string as it is stored."""
    return struct.pack("<Q", len(value) if length is None else length) + value


def tensor(
    name: bytes, *lengths: int, kind: int = 0, offset: int = 0, num_dimensions: int | None = None
) -> bytes:
    """A line of the table of tensors."""
    count = len(lengths) if num_dimensions is None else num_dimensions
    return text(name) + struct.pack(f"<I{len(lengths)}QIQ", count, *lengths, kind, offset)


def value(kind: int, *data: bytes) -> bytes:
    """A metadata value named k."""
    return text(b"k") + struct.pack("<I", kind) + b"".join(data)


def array(kind: int, length: int) -> bytes:
    """The beginning of an array."""
    return value(9, struct.pack("<IQ", kind, length))


HUGE = (1 << 64) - 1
MALFORMED = {
    "empty": (b"", "does not begin with GGUF"),
    "another magic": (b"GGML" + bytes(60), "does not begin with GGUF"),
    "only the magic": (b"GGUF", "truncated: the version"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1 is not supported; supported: 2, 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "too many values": (header(num_values=HUGE), "truncated: a metadata key"),
    "too many tensors": (header(num_tensors=HUGE), "truncated: a tensor's name"),
    "huge key": (header(text(b"k", HUGE)), "a metadata key has 18446744073709551615 bytes; the limit is 65"),
    "huge string": (header(value(8, text(b"v", 1 << 40))), "metadata value k has 1099511627776 bytes"),
    "long string": (header(value(8, text(b"v", 99))), "truncated: metadata value k"),
    "not UTF-8": (header(value(8, text(b"\xff"))), "metadata value k is not UTF-8"),
    "unknown type": (header(value(13)), "metadata value k has the unknown type 13"),
    "huge array": (header(array(0, HUGE)), "elements; the limit is 4194304"),
    "long array": (header(array(10, 9)), "truncated: metadata value k"),
    "long array of strings": (header(array(8, 9)), "truncated: metadata value k"),
    "array of arrays": (header(array(9, 1)), "unsupported type 9"),
    "key twice": (header(value(0, b"1"), value(0, b"1")), "metadata key k is there twice"),
    "alignment": (header(text(b"general.alignment") + struct.pack("<II", 4, 12)), "general.alignment is 12"),
    "no dimensions": (header(tensors=(tensor(b"t"),)), "tensor t has 0 dimensions"),
    "many dimensions": (header(tensors=(tensor(b"t", num_dimensions=9),)), "tensor t has 9 dimensions"),
    "empty tensor": (header(tensors=(tensor(b"t", 0),)), r"tensor t of shape \[0\]"),
    "overflowing shape": (header(tensors=(tensor(b"t", 1 << 63, 1 << 63),)), "truncated: tensor t would end"),
    "outside the file": (header(tensors=(tensor(b"t", 4, offset=1 << 40),)), "truncated: tensor t would end"),
    "offset": (header(tensors=(tensor(b"t", 4, offset=7),)), "tensor t at 7"),
    "broken blocks": (header(tensors=(tensor(b"t", 31, kind=8),)), "not whole rows of Q8_0"),
    "unsupported": (header(tensors=(tensor(b"t", 256, kind=16),)), "tensor t is stored as IQ2_XXS, which"),
    "unknown kind": (header(tensors=(tensor(b"t", 256, kind=999),)), "tensor t is stored as type 999"),
    "name twice": (
        header(tensors=(tensor(b"t", 1), tensor(b"t", 1, offset=32))) + bytes(100), "tensor t is there twice"
    ),
    "overlap": (
        header(tensors=(tensor(b"t", 16), tensor(b"u", 1, offset=32))) + bytes(200), "tensor u at 32"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_by_name(tmp_path, case):
    """A message names the file, and the part or the limit at fault."""
    data, message = MALFORMED[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message) as caught:
        GgufFile.open(path)
    assert str(path) in str(caught.value)


def test_what_cannot_be_read_is_refused(tmp_path):
    """A folder, and a file that is not there, are refused by name."""
    for path in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(ModelError, match="cannot be read"):
            GgufFile.open(path)


def test_values_have_their_type(tmp_path):
    """A value of another type, a number that is none, and a mixed array are refused by their key."""
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_float32("nan", float("nan"))
    writer.add_uint32("count", 3)
    writer.add_bool("flag", True)
    writer.add_array("list", [1, 2])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile.open(path)
    assert file.get("count", 0) == 3
    assert file.get("count", 0.5) == 3.0
    assert file.get("absent", 7) == 7
    assert file.get_list("list", int) == [1, 2]
    assert file.get_list("absent", str) == []
    for key, default, message in (
        ("nan", 1.0, "nan is nan; a number"), ("count", "x", "count is 3; a string"),
        ("flag", 1, "flag is True; an integer"), ("count", False, "count is 3; a bool"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=message):
            file.get(key, default)
    with pytest.raises(ModelError, match="list is not an array of str"):
        file.get_list("list", str)


def test_a_file_that_shrinks_is_an_error(tmp_path):
    """A tensor that is no longer there when it is read is named."""
    path = write(tmp_path / "m.gguf", {"output.weight": (normal(4, 32), "F32")})
    checkpoint = GgufCheckpoint.open(GgufFile.open(path), 2, 1)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError, match=r"tensor output\.weight ends early"):
        checkpoint.read("lm_head.weight")
    path.unlink()
    with pytest.raises(ModelError, match=r"tensor output\.weight cannot be read"):
        checkpoint.read("lm_head.weight")


FUZZ = settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@FUZZ
@given(st.data())
def test_no_damage_goes_further_than_a_refusal(tmp_path, plain, data):
    """A file with bytes changed, cut out or cut off is either read or refused by its name."""
    damaged = bytearray(plain)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(damaged) - 8))
        value = data.draw(
            st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([struct.pack("<Q", HUGE)]))
        )
        damaged[at : at + len(value)] = value
    cut = data.draw(st.integers(0, len(damaged)))
    del damaged[cut : cut + data.draw(st.sampled_from([0, 0, 1, 8, len(plain)]))]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    refusal = None
    try:
        read_everything(path)
    except ModelError as error:
        refusal = str(error)
    assert refusal is None or str(path) in refusal


@FUZZ
@given(st.binary(max_size=300))
def test_noise_is_refused(tmp_path, noise):
    """Whatever follows a valid beginning is read or refused."""
    path = tmp_path / "noise.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + noise)
    with pytest.raises(ModelError):
        read_everything(path)
