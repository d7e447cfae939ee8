"""Bringing a driver up: its hello, the model that it is told to load, and what it says of that."""

from __future__ import annotations

from collections.abc import Callable

import trio

from llmos.cost import Profile, StepWork
from llmos.device import DRIVER_ABI, DriverLink, DriverLost, Failed, Hello, Load, Loaded, Progress
from llmos.errors import LlmosError
from llmos.kernel.events import EventLog
from llmos.params import DRIVER_START_SECONDS


class LoadRefused(LlmosError):
    """The driver will not load what it was told to; the message says why.

    At the first load trying again cannot help. What was loaded once may be again: memory that was short, or
    a device that was beyond use, comes back.
    """


async def receive_hello(link: DriverLink, name: str) -> Hello:
    """Wait for a driver to say what it is. A checkpoint.

    Raises:
        DriverLost: it has said nothing in DRIVER_START_SECONDS, or is gone.
        LoadRefused: it speaks another ABI.
    """
    try:
        with trio.fail_after(DRIVER_START_SECONDS):
            hello = await link.receive()
    except trio.TooSlowError:
        raise DriverLost(f"driver {name} did not start in {DRIVER_START_SECONDS:g} s") from None
    if not isinstance(hello, Hello) or hello.abi != DRIVER_ABI:
        raise LoadRefused(f"driver speaks ABI {getattr(hello, 'abi', '?')}, not {DRIVER_ABI}")
    return hello


async def load_model(
    link: DriverLink, load: Load, name: str, on_progress: Callable[[Progress], None]
) -> Loaded:
    """Have a driver load a model: Load, Progress*, Loaded. A checkpoint.

    Raises:
        DriverLost: it is gone, or answers something else.
        LoadRefused: it cannot.
    """
    await link.send(load)
    while True:
        answer = await link.receive()
        match answer:
            case Loaded():
                return answer
            case Failed(message):
                raise LoadRefused(message)
            case Progress():
                on_progress(answer)
            case _:
                raise DriverLost(f"driver {name} answered Load with {type(answer).__name__}")


def record_loaded(events: EventLog, name: str, loaded: Loaded) -> None:
    """Tell operators what a driver has loaded, what its weights lose, and how fast it is."""
    model, kv = loaded.model, loaded.kv
    events.record(
        "driver",
        f"{name}: {model.name} ({model.architecture}, {model.dtype}) loaded in {loaded.seconds:.2f} s; "
        f"{loaded.num_frames} frames of {kv.frame_bytes / 1024:g} KiB, {kv.name}",
    )
    if (quality := loaded.quality) is not None:
        events.record(
            "driver",
            f"{name}: {quality.weights} diverges by {quality.kl_divergence:.4f} nats a token over "
            f"{quality.num_tokens} of {quality.text}; "
            f"the likeliest token is the same in {quality.top1_agreement:.1%}",
        )
    if (profile := loaded.profile) is not None and profile.num_steps:
        events.record("driver", f"{name}: {_describe_profile(profile)}")


def _describe_profile(profile: Profile) -> str:
    """One line: the time of three steps, and how it is known."""
    cost, nothing = profile.cost, StepWork()
    decodes = nothing
    for _ in range(32):
        decodes = decodes.with_row(0, 1)
    times = [1e3 * cost.step_seconds(w) for w in (nothing.with_row(0, 1), decodes, nothing.with_row(0, 256))]
    return (
        f"a step takes {times[0]:.1f} ms for a token, {times[1]:.1f} ms for 32 processes that decode, "
        f"{times[2]:.1f} ms for 256 tokens of a prompt; {profile.num_steps} steps measured in "
        f"{profile.seconds:.2f} s, each within {profile.error:.0%} of it"
    )
