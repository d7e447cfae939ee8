"""The file format of process images: what is written is read, and nothing else is taken for it."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.device import KVFormat, Segment
from llmos.proc.image import (
    FOOTER,
    FORMAT_VERSION,
    MAGIC,
    DamagedImage,
    Image,
    Platform,
    SavedProcess,
    Summary,
    UnknownVersion,
    encode_tail,
    explain_mismatch,
    read_tail,
)
from syscalls.process import ExitStatus
from syscalls.sampling import Sampling, TokenLogprobs

VOCABULARY, CONTEXT = 500, 200


@st.composite
def images(draw: st.DrawFn) -> Image:
    """Images that a process can be made of."""
    segments = tuple(Segment(name, 4) for name in ("K", "V")[: draw(st.integers(1, 2))])
    kv = KVFormat("fp32", segments, draw(st.sampled_from([16, 64])), draw(st.sampled_from([1, 4, 16])))
    ids = st.integers(0, VOCABULARY - 1)
    earlier = draw(st.lists(ids, max_size=20))  # output of earlier turns
    output = [*earlier, *draw(st.lists(ids, max_size=20))]
    num_prompt = draw(st.integers(1, 60))
    prompt = draw(st.lists(ids, min_size=num_prompt, max_size=num_prompt))
    tokens = [*prompt, *output]
    num_turn_output = len(output) - len(earlier)
    is_over = draw(st.booleans()) and num_turn_output > 0
    max_tokens = draw(st.integers(max(1, num_turn_output + (not is_over)), 60))
    wants_logprobs = draw(st.booleans())
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.0, 0.7])),
        logit_bias=draw(st.dictionaries(ids, st.floats(-100, 100), max_size=3)),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        logprobs=1 if wants_logprobs else None,
    )
    num_saved = draw(st.integers(0, len(tokens)))
    checksum = st.integers(0, 2**32 - 1)
    process = SavedProcess(
        tokens=tokens,
        output=output,
        logprobs=[TokenLogprobs(-0.5, (token,), (-0.5,)) for token in output] if wants_logprobs else [],
        turn_start=len(tokens) - num_turn_output,
        max_tokens=max_tokens,
        sampling=sampling,
        stop_tokens=draw(st.lists(ids, max_size=3)),
        min_tokens=draw(st.integers(0, 3)),
        interactive=is_over or draw(st.booleans()),
        nice=draw(st.integers(-20, 19)),
        deadline_seconds=draw(st.none() | st.floats(0.1, 1e6)),
        status=ExitStatus("length") if is_over else None,
        num_prompt_tokens=num_prompt,
        num_uncharged=draw(st.integers(0, num_prompt)),
        num_saved_tokens=num_saved,
        checksums=[tuple(draw(checksum) for _ in segments) for _ in range(kv.num_pages(num_saved))],
    )
    platform = Platform(3, "ab12", "", "bf16", "plain", kv, VOCABULARY, CONTEXT)
    return Image(platform, "base", draw(st.text(max_size=5)), 1.5e9, process)


def write(image: Image) -> bytes:
    """A whole file, with frames that mean nothing."""
    return bytes(image.num_frame_bytes) + encode_tail(image)


def seal(description: bytes, frames: bytes = b"", version: int = FORMAT_VERSION) -> bytes:
    """A file with any description, and checksums that are right."""
    head = FOOTER.pack(MAGIC, version, len(description), zlib.crc32(description), 0)[:-4]
    return frames + description + head + zlib.crc32(head).to_bytes(4, "little")


@given(images())
def test_what_is_written_is_read(image: Image) -> None:
    """Round trip, and the summary agrees."""
    file = io.BytesIO(write(image))
    assert read_tail(file, Image) == image
    summary = read_tail(file, Summary)
    assert (summary.platform, summary.label) == (image.platform, image.label)
    assert summary.process.num_saved_tokens == image.process.num_saved_tokens


@given(images(), st.data())
def test_a_flipped_byte_is_refused(image: Image, data: st.DataObject) -> None:
    """Any change of one byte behind the frames is refused, whatever it hits."""
    whole = bytearray(write(image))
    position = data.draw(st.integers(image.num_frame_bytes, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    for kind in (Image, Summary):
        with pytest.raises(DamagedImage):
            read_tail(io.BytesIO(whole), kind)


@given(images(), st.data())
def test_a_file_that_was_cut_is_refused(image: Image, data: st.DataObject) -> None:
    """From the end or from the beginning, by however much."""
    whole = write(image)
    cut = data.draw(st.integers(1, len(whole)))
    with pytest.raises(DamagedImage):
        read_tail(io.BytesIO(whole[:-cut]), Image)
    with pytest.raises(DamagedImage):
        read_tail(io.BytesIO(whole[cut:]), Image)


@given(st.binary(max_size=200))
def test_anything_else_is_refused(data: bytes) -> None:
    """Bytes that are no image, also where the checksums are right."""
    for whole in (data, seal(data)):
        with pytest.raises(DamagedImage):
            read_tail(io.BytesIO(whole), Image)


@given(images(), st.integers(0, 2**32 - 1).filter(lambda version: version != FORMAT_VERSION))
def test_another_version_is_named(image: Image, version: int) -> None:
    """A later format is not damaged; it is refused with both versions."""
    whole = seal(msgspec.msgpack.encode(image), bytes(image.num_frame_bytes), version)
    with pytest.raises(UnknownVersion, match=f"has format version {version}, this system reads 1"):
        read_tail(io.BytesIO(whole), Image)


LIES: list[tuple[dict[str, Any], str]] = [
    ({"tokens": []}, "3 tokens with keys and values of 0"),
    ({"tokens": [1] * (CONTEXT + 1)}, "201 tokens; the context is 200"),
    ({"tokens": [1, 2, VOCABULARY]}, "tokens holds an id outside"),
    ({"output": [-1]}, "output holds an id outside"),
    ({"stop_tokens": [VOCABULARY]}, "stop_tokens holds an id outside"),
    ({"num_prompt_tokens": 1}, "1 tokens of input and 1 of output in 3"),
    ({"logprobs": [TokenLogprobs(0.0)]}, "1 logprobs, not 0"),
    ({"turn_start": 0}, "a turn that starts at 0 of 3"),
    ({"turn_start": 4}, "a turn that starts at 4 of 3"),
    ({"turn_start": 1}, "2 tokens of output in a turn of 9"),
    ({"max_tokens": 1}, "1 tokens of output in a turn of 1"),
    ({"max_tokens": 0, "turn_start": 3}, "0 tokens of output in a turn of 0"),
    ({"max_tokens": CONTEXT}, "max_tokens is 200"),
    ({"min_tokens": -1}, "min_tokens is -1"),
    ({"nice": 20}, "nice is 20"),
    ({"deadline_seconds": 0.0}, "deadline_seconds is 0.0"),
    ({"sampling": Sampling()}, "no seed"),
    ({"sampling": Sampling(seed=1, temperature=9.0)}, "temperature is 9.0"),
    ({"status": ExitStatus("length")}, "a process that has ended"),
    ({"status": ExitStatus("killed"), "interactive": True}, "a process that has ended"),
    ({"num_uncharged": 3}, "num_uncharged is 3"),
    ({"num_saved_tokens": 4}, "4 tokens with keys and values of 3"),
    ({"num_saved_tokens": 2**62}, "tokens with keys and values of 3"),
    ({"num_saved_tokens": 0}, "frames of 32 bytes for 0 tokens"),
    ({"user": "x" * 257}, "user has 257 characters"),
    ({"checksums": []}, "checksums of 0 pages; there are 1"),
    ({"checksums": [(1,)]}, "checksums of 1 pages; there are 1"),
    ({"checksums": [(1, 1 << 32)]}, "checksums holds what is none"),
]


@pytest.mark.parametrize(("change", "problem"), LIES, ids=lambda value: str(value)[:40])
def test_a_description_that_contradicts_itself_is_refused(change: dict[str, Any], problem: str) -> None:
    """Checksums right and numbers wrong: nothing is made of it, and nothing is allocated by it."""
    good = SavedProcess(
        [1, 2, 3], [3], [], 2, 9, Sampling(seed=1), [], 0, False, 0, None, None, 2, 0, 3, [(1, 2)]
    )  # fmt: skip
    kv = KVFormat("fp32", (Segment("K", 4), Segment("V", 4)), 16, 4)
    image = Image(Platform(3, "ab", "", "bf16", "plain", kv, VOCABULARY, CONTEXT), "base", "", 0.0, good)
    frames = bytes(image.num_frame_bytes)
    assert read_tail(io.BytesIO(seal(msgspec.msgpack.encode(image), frames)), Image) == image
    wrong = msgspec.structs.replace(image, process=msgspec.structs.replace(good, **change))
    with pytest.raises(DamagedImage) as caught:
        read_tail(io.BytesIO(seal(msgspec.msgpack.encode(wrong), frames)), Image)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "kv",
    [
        KVFormat("x", (), 16, 4),
        KVFormat("x", (Segment("K", 4),), 0, 4),
        KVFormat("x", (Segment("K", 4),), 16, 0),
    ],
)
def test_a_format_without_pages_is_refused(kv: KVFormat) -> None:
    """Nothing is divided by zero."""
    good = SavedProcess([1, 2, 3], [3], [], 2, 9, Sampling(seed=1), [], 0, False, 0, None, None, 2, 0, 0, [])
    image = Image(Platform(3, "ab", "", "bf16", "plain", kv, VOCABULARY, CONTEXT), "base", "", 0.0, good)
    with pytest.raises(DamagedImage, match="a KV format of"):
        read_tail(io.BytesIO(seal(msgspec.msgpack.encode(image))), Image)


@pytest.mark.parametrize("bomb", [b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"])
def test_sizes_that_lie_allocate_nothing(bomb: bytes) -> None:
    """A list, string or map that claims four thousand million entries, where each field may have one."""
    for field in ("tokens", "logprobs", "checksums", "stop_tokens"):
        description = b"\x81\xa7process\x81" + msgspec.msgpack.encode(field) + bomb
        with pytest.raises(DamagedImage):
            read_tail(io.BytesIO(seal(description)), Image)


def test_a_length_that_lies_reads_nothing() -> None:
    """A footer whose description is longer than the file, its own checksum right."""
    head = struct.pack("<8sIQI", MAGIC, FORMAT_VERSION, 1 << 60, 0)
    with pytest.raises(DamagedImage, match="a description of 1152921504606846976 bytes in a file of 28"):
        read_tail(io.BytesIO(head + zlib.crc32(head).to_bytes(4, "little")), Image)


@settings(max_examples=20)
@given(images())
def test_only_equal_platforms_match(image: Image) -> None:
    """Whatever field differs is named."""
    platform = image.platform
    assert explain_mismatch(platform, platform) is None
    for field in Platform.__struct_fields__:
        value = getattr(platform, field)
        other: Any = (
            msgspec.structs.replace(value, name="other") if field == "kv"
            else value + 1 if isinstance(value, int) else value + "x"
        )  # fmt: skip
        problem = explain_mismatch(platform, msgspec.structs.replace(platform, **{field: other}))
        assert problem is not None
        assert problem.startswith(f"was made with {field.replace('_', ' ')} ")
