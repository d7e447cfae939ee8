"""Servers side by side: `python -m llmos.bench.compare LINES.jsonl OUT.jsonl`.

LINES.jsonl holds what `llmos bench workload --jsonl` prints, for llmos and in the same form for others,
measured in turn on one machine: `peer`, `model`, `prec`, `workload`, `batch` and numbers. Each number of ours
stands against the best of the others at the same width of weights.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from llmos.bench.report import Report
from llmos.bench.workload import METRICS, WORKLOADS

WIDTHS = {  # bits of a weight, by what servers call their formats
    "w8a8": 8, "int8": 8, "q8_0": 8,
    "w4a8": 4, "int4": 4, "q4_0": 4,
    "fp32": 32, "bf16": 16, "fp16": 16,
}  # fmt: skip
OURS = "llmos"
COMPARED = ("prefill_tok_s", "decode_tok_s", "output_tok_s", "ttft_p99_s", "tbt_p99_ms")

Key = tuple[str, int, str, str]  # model, bits, workload, metric


def compare(lines: list[dict[str, Any]]) -> Report:
    """Rows of llmos, each against the best other one; medians over the rounds.

    Formats of a width that no other server has are left out.
    """
    found: dict[Key, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        workload = line["workload"] + (str(line["batch"]) if line["workload"] == "B" else "")
        for metric in COMPARED:
            if line["prec"] in WIDTHS and metric in line and workload in WORKLOADS:
                key = (line["model"], WIDTHS[line["prec"]], workload, metric)
                found[key][line["peer"], line["prec"]].append(line[metric])
    report = Report("peers")
    order = [(model, bits, workload, metric) for model, bits, workload, metric in found]
    for key in sorted(order, key=lambda key: (key[0], -key[1], list(WORKLOADS).index(key[2]))):
        model, bits, workload, metric = key
        name, unit = METRICS[metric]
        higher_is_better = unit == "tokens/s"
        medians = {who: statistics.median(values) for who, values in found[key].items()}
        ours = [who for who in medians if who[0] == OURS]
        others = [who for who in medians if who[0] != OURS]
        if not ours or not others:
            continue
        best = (max if higher_is_better else min)(others, key=lambda who: medians[who])
        for who in ours:
            value, theirs = medians[who], medians[best]
            report.add(
                f"{model}, {bits} bits: {WORKLOADS[workload][0]}",
                name,
                value,
                unit,
                against=f"{best[0]} {best[1]}: {theirs:,.4g}",
                ratio=value / theirs if higher_is_better else theirs / value,
                runs=len(found[key][who]),
            )
    return report


def main(source: str, target: str) -> None:
    """Read lines, print the table, write rows."""
    lines = [msgspec.json.decode(line) for line in Path(source).read_bytes().splitlines() if line.strip()]
    report = compare(lines)
    report.print_table()
    report.write_json(target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
