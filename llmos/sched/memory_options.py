"""How a device's memory is used, whatever model it has."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from llmos.device import Loaded, Tier
from llmos.mm.eviction import CostAware, make_eviction
from llmos.mm.mapper import MappingMode
from llmos.mm.swap import Swap
from llmos.mm.vmm import VMM


@attrs.frozen(kw_only=True)
class MemoryOptions:
    """What is configured of one device's memory."""

    max_spaces: int  # address spaces, for processes that run and for those that only hold memory
    prefix_cache: bool = True  # keep the pages of ended processes for others to share
    cache_policy: str = CostAware.name  # which of those go first, one of EVICTION_POLICIES
    max_pin_seconds: float = 0.0  # longest that pages may be pinned in the prefix cache; 0: not at all
    max_pinned_bytes: int | None = None  # of the prefix cache, for each tenant; None: as the VMM says
    mapping: MappingMode = "ahead"  # when pages are mapped, see Mapper
    swap_reuse: bool = True  # keep copies on lower tiers when their pages are back

    def make_vmm(self, loaded: Loaded, max_step_tokens: int) -> VMM:
        """The kernel's half of the memory that a driver has found for its model."""
        knee = loaded.profile.cost.knee_tokens(max_step_tokens) if loaded.profile else None
        return VMM(
            loaded.kv,
            num_frames=loaded.num_frames,
            max_spaces=self.max_spaces,
            max_model_len=loaded.model.max_model_len,
            prefix_cache=self.prefix_cache,
            eviction=make_eviction(self.cache_policy, knee),
            mapping=self.mapping,
            max_pinned_bytes=self.max_pinned_bytes,
            clock=trio.current_time,
        )

    def make_swap(self, vmm: VMM, loaded: Loaded, on_fault: Callable[[str], None]) -> Swap:
        """The tiers below; `on_fault` is told of pages whose copy is bad."""
        num_slots: dict[Tier, int] = {"host": loaded.num_host_slots, "disk": loaded.num_disk_slots}
        return Swap(vmm, num_slots, on_fault, self.swap_reuse, trio.current_time)
