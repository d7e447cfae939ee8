"""What came of one run of `llmos bench switch`, whatever the device."""

from __future__ import annotations

import attrs

from llmos.bench.chats import Held, Latencies
from llmos.sched.core import CoreStatistics


@attrs.frozen
class SwitchRun:
    """Latencies, and what switching took. Small, so that it can be sent between processes."""

    latencies: Latencies
    digests: dict[int, str]  # of each conversation's answers
    num_preemptions: int
    num_bytes_out: int  # copied from the device
    num_bytes_in: int  # copied to it
    num_clean_bytes: int  # not copied, since a copy was there
    num_prompt_tokens: int  # computed, once or again

    @classmethod
    def of(cls, held: Held, statistics: CoreStatistics) -> SwitchRun:
        """Sum up."""
        swap = statistics.swap
        tiers = swap.tiers.values() if swap is not None else ()
        return cls(
            latencies=Latencies.of(held),
            digests=held.digests,
            num_preemptions=statistics.num_preemptions,
            num_bytes_out=sum(tier.num_bytes_out for tier in tiers),
            num_bytes_in=sum(tier.num_bytes_in for tier in tiers),
            num_clean_bytes=swap.num_clean_bytes if swap is not None else 0,
            num_prompt_tokens=statistics.num_prompt_tokens,
        )
