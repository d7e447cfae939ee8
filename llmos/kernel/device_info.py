"""What callers are told of devices, and of the models on them."""

from __future__ import annotations

import msgspec

from llmos.device import KVFormat, Loaded
from llmos.kernel.driver_host import DriverHost
from llmos.mm.mapper import MapStatistics
from llmos.mm.swap import SwapStatistics
from llmos.mm.vmm import VmmStatistics
from llmos.params import VERSION
from llmos.sched.core import Core
from syscalls.system import (
    CacheInfo,
    DeviceInfo,
    FormatQuality,
    MapInfo,
    Model,
    StepCost,
    SwapInfo,
    TierInfo,
)


def describe_device(name: str, host: DriverHost, core: Core) -> DeviceInfo:
    """What `lsdev` shows of a device."""
    statistics, hello, loaded = core.statistics(), host.hello, core.loaded
    memory = statistics.memory
    return DeviceInfo(
        name=name,
        kind=hello.kind if hello else "",
        description=hello.description if hello else "",
        state="sleeping" if core.rest.is_asked_for else host.state.value,
        model=loaded.model.name if loaded else "",
        dtype=loaded.model.dtype if loaded else "",
        kv_dtype=loaded.kv.name if loaded else "",
        kernels=loaded.model.kernels if loaded else "",
        quality=_format_quality(loaded),
        cache=_cache_info(memory, loaded.kv, core.memory.cache_policy) if memory and loaded else None,
        step_cost=_step_cost(core),
        swap=_swap_info(statistics.swap, loaded.kv.frame_bytes) if loaded else None,
        num_threads=hello.num_threads if hello else 0,
        frame_bytes=loaded.kv.frame_bytes if loaded else 0,
        num_frames=memory.num_frames if memory else 0,
        num_free_frames=memory.num_free if memory else 0,
        num_cached_frames=memory.num_cached if memory else 0,
        num_processes=statistics.num_processes,
        num_running=statistics.num_running,
        num_waiting=statistics.num_waiting,
        num_steps=statistics.num_steps,
        num_output_tokens=statistics.num_output_tokens,
        num_preemptions=statistics.num_preemptions,
        maps=_map_info(memory.maps) if memory else None,
        busy_seconds=statistics.device_seconds,
        num_restarts=host.num_restarts,
        driver_pid=hello.os_pid if hello and not host.is_asleep else None,
        message=host.message,
    )


def describe_model(loaded: Loaded, created: int, *, ready: bool) -> Model:
    """What clients need to know of a model.

    Args:
        loaded: by a driver.
        created: when the kernel had loaded its models, in seconds since the epoch.
        ready: its device can take processes now.
    """
    model, kv = loaded.model, loaded.kv
    return Model(
        name=model.name,
        path=model.path,
        max_model_len=model.max_model_len,
        vocab_size=model.vocab_size,
        eos_token_ids=model.eos_token_ids,
        dtype=model.dtype,
        hash=model.hash,
        num_parameters=model.num_parameters,
        created=created,
        fingerprint="-".join(
            (model.hash[:10], model.dtype, kv.name, str(kv.tokens_per_page), model.kernels, VERSION)
        ),
        ready=ready,
        generates=model.generates,
        embedding=model.embedding,
    )


def _format_quality(loaded: Loaded | None) -> FormatQuality | None:
    if loaded is None or (found := loaded.quality) is None:
        return None
    return FormatQuality(found.kl_divergence, found.top1_agreement, found.num_tokens, found.text)


def _swap_info(swap: SwapStatistics | None, frame_bytes: int) -> SwapInfo | None:
    if swap is None or not any(tier.num_slots for tier in swap.tiers.values()):
        return None
    return SwapInfo(
        tiers=tuple(
            TierInfo(
                name=name,
                num_bytes=tier.num_slots * frame_bytes,
                num_free_bytes=tier.num_free * frame_bytes,
                num_bytes_out=tier.num_bytes_out,
                num_bytes_in=tier.num_bytes_in,
            )
            for name, tier in swap.tiers.items()
        ),
        num_copies_in_flight=swap.num_in_flight,
        num_clean_bytes=swap.num_clean_bytes,
        num_faulty_pages=swap.num_faults,
        num_dropped_pages=swap.num_dropped,
        num_copies_beside_steps=swap.num_beside_steps,
    )


def _cache_info(memory: VmmStatistics, kv: KVFormat, policy: str) -> CacheInfo:
    prefix = memory.prefix
    return CacheInfo(
        policy=policy,
        page_bytes=kv.page_bytes,
        tokens_per_page=kv.tokens_per_page,
        num_pages=prefix.num_pages,
        num_idle_pages=prefix.num_idle_pages,
        num_queries=prefix.num_queries,
        num_hits=prefix.num_hits,
        num_query_tokens=prefix.num_query_tokens,
        num_hit_tokens=prefix.num_hit_tokens,
        num_copied_pages=memory.num_tail_copies,
        num_evicted_pages=prefix.num_evicted_pages,
        num_pinned_pages=prefix.num_pinned_pages,
    )


def _map_info(maps: MapStatistics) -> MapInfo:
    device = maps.device
    return MapInfo(
        num_ahead=maps.num_ahead,
        num_sync=maps.num_sync,
        num_reused=maps.num_reused,
        num_unused=maps.num_unused,
        num_late=device.num_late,
        num_unmapped=device.num_unmapped,
        num_waiting_steps=maps.num_waiting_steps,
        wait_seconds=device.wait_seconds,
        beside_seconds=device.beside_seconds,
    )


def _step_cost(core: Core) -> StepCost | None:
    profile, forecast = core.preemption.profile, core.preemption.forecast
    if profile is None or forecast is None:
        return None
    cost = msgspec.structs.asdict(profile.cost)
    return StepCost(**cost, error=profile.error, correction=forecast.correction)
