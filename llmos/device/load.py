"""A load: the model and the memory that a driver is asked to set up, and what it says of them."""

from __future__ import annotations

import msgspec

from llmos.cost import Profile
from llmos.device.layout import KVFormat
from syscalls.embedding import EmbeddingInfo


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Load a model and set up memory. The driver answers `Progress`*, then `Loaded` or `Failed`."""

    path: str  # a Hugging Face folder or a GGUF file
    name: str
    weights: str  # "fp32", "fp16", "bf16", "w8a8", "w4a8", or "auto": the fastest that is close enough
    kv: str  # of keys and values: "fp32", "fp16", "bf16", "int8", or "auto": what goes with the weights
    pool_bytes: int | None  # physical memory for frames; None: the driver chooses by what the device has
    frame_bytes: int | None
    max_spaces: int
    max_model_len: int | None  # None: what the checkpoint says
    max_step_tokens: int  # most tokens that one step will carry
    max_divergence: float = 0.0  # what "auto" takes for close enough: nats of KL divergence per token
    quality_text: str | None = None  # a UTF-8 file to measure that on; None: the driver's own
    host_bytes: int = 0  # of the host area, the tier below the device; 0: there is none
    disk_bytes: int = 0  # most bytes of the swap file, the tier below that; 0: there is none
    disk_folder: str | None = None  # where the swap file lies; None: the system's folder for temporary files
    copy_piece_bytes: int | None = None  # copy in pieces of so many bytes, for comparison; None: whole runs


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far a load is."""

    done_bytes: int
    total_bytes: int
    what: str


class ModelInfo(msgspec.Struct, frozen=True):
    """A loaded model, as the kernel needs to know it."""

    name: str
    path: str  # a folder with its tokenizer and chat template
    architecture: str
    hash: str  # hex digest over config and weights
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    dtype: str  # of the weights
    num_parameters: int
    kernels: str  # what computes; equal bits are promised between equal ones
    weight_bytes: int = 0  # in the device's memory, or mapped into it; 0: not known
    generates: bool = True  # text; an encoder only makes vectors
    embedding: EmbeddingInfo | None = None  # None: it makes no vectors


class Quality(msgspec.Struct, frozen=True):
    """What a number format costs, against the model as it was published, over the tokens of a text."""

    weights: str
    kv: str
    kl_divergence: float  # nats per token: mean over positions of sum p (log p - log q)
    top1_agreement: float  # share of positions where the most likely token is the same
    num_tokens: int
    text: str


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The model can serve."""

    model: ModelInfo
    kv: KVFormat
    num_frames: int
    seconds: float
    quality: Quality | None = None  # of a quantised format
    profile: Profile | None = None  # None: how long steps take is not known
    num_host_slots: int = 0  # of frame_bytes each
    num_disk_slots: int = 0
    takes_grammars: bool = False  # spaces may be bound with a grammar


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The load was refused; nothing stays half-loaded. `message` names the file, tensor or limit."""

    message: str
