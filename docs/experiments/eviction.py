"""What a policy of eviction saves: a trace of prompts replayed through the prefix index, at several sizes.

python docs/experiments/eviction.py TRACE.jsonl [REQUESTS]

TRACE: one object a line with `hash_ids`, one id for each 512 tokens of the prompt; equal ids mean equal
tokens after equal ones (the format of Mooncake's published traces). A page is such a block. Printed are the
share of tokens found, and the share of the work that finding them saved, where a token at position p costs
1 + p / 8192.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from llmos.errors import OutOfFrames
from llmos.mm.eviction import DEFAULT_KNEE_TOKENS, CostAware, LeastRecentlyUsed
from llmos.mm.frame import FramePool
from llmos.mm.pins import Pins
from llmos.mm.prefix import PrefixIndex

BLOCK_TOKENS = 512
POLICIES = {
    "cost": lambda: CostAware(DEFAULT_KNEE_TOKENS / BLOCK_TOKENS),  # positions are counted in blocks here
    "lru": LeastRecentlyUsed,
}
CAPACITIES = (1000, 2000, 5000, 10_000, 20_000, 50_000)


def replay(prompts: list[list[int]], capacity: int, policy: str) -> tuple[float, float]:
    """Run prompts one after the other. Returns the shares of tokens found and of work saved."""
    pool = FramePool(capacity)
    index = PrefixIndex(pool, 1, 1, Pins(time.monotonic, 0), POLICIES[policy]())  # one id stands for a block
    found = asked = saved = work = 0.0
    for ids in prompts:
        pages = index.match("", ids).pages
        costs = [1 + number * BLOCK_TOKENS / DEFAULT_KNEE_TOKENS for number in range(len(ids))]
        asked, found = asked + len(ids), found + len(pages)
        work, saved = work + sum(costs), saved + sum(costs[: len(pages)])
        try:
            missing = len(ids) - len(pages) - pool.num_free
            if missing > 0 and index.evict(missing) < missing:
                raise OutOfFrames(missing, 0)
            pages += [(pfn,) for pfn in pool.allocate(len(ids) - len(pages))]
        except OutOfFrames:
            ids = ids[: len(pages)]  # larger than the pool: what is there is kept
        index.insert("", ids, pages)
        for page in pages:
            pool.release(page[0])
            index.note_release(page)
    return found / asked, saved / work


def main(trace: str, num_requests: int | None) -> None:
    """Print a table."""
    lines = Path(trace).read_text().splitlines()[:num_requests]
    prompts = [json.loads(line)["hash_ids"] for line in lines]
    print(f"{len(prompts)} prompts, {len({i for ids in prompts for i in ids})} distinct blocks")
    print("   pages" + "".join(f"   {name}: found   saved" for name in POLICIES))
    for capacity in CAPACITIES:
        results = (replay(prompts, capacity, name) for name in POLICIES)
        print(f"{capacity:8}" + "".join(f"{found:14.1%} {saved:7.1%}" for found, saved in results))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
