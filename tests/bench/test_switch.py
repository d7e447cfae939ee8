"""`llmos bench switch`: its arithmetic, what it refuses, and small runs on the virtual clock."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from llmos import cli
from llmos.bench.chats import Held, Latencies, TurnTimes
from llmos.bench.conversations import TraceRow, make_conversations
from llmos.bench.crossover import measure_crossover
from llmos.bench.kept_runs import KeptRuns
from llmos.bench.report import Report
from llmos.bench.switch import choose_contexts, choose_loads, measure_real, random_model
from llmos.bench.switch_real import describe, hold
from llmos.bench.switch_report import NothingMeasured, add_recompute_rows, add_rows, check_runs
from llmos.bench.switch_run import SwitchRun
from llmos.bench.switch_sim import A10, simulate
from llmos.bench.switch_variants import AUTO, BLOCKS, FCFS, GROUPS, RECOMPUTE, REUSE, make_variants
from llmos.config import Config, ConfigError
from llmos.device import Tier

ROWS = [TraceRow(prompt, 10 + prompt % 53) for prompt in range(16, 3000, 5)]
SMALL = attrs.evolve(A10, pool_tokens=2048, context=1024)


def run_of(ttft: float, tbt: float = 0.1, num_bytes: int = 1, **changes: Any) -> SwitchRun:
    """A run with these numbers, of one conversation."""
    latencies = Latencies(
        dict.fromkeys((50.0, 95.0, 99.0), ttft), dict.fromkeys((50.0, 99.0, 99.9), tbt), 9.0
    )
    run = SwitchRun(latencies, {0: "answer"}, 1, num_bytes, 0, 0, 100)
    return attrs.evolve(run, **changes)


def test_latencies_are_counted_from_the_asking() -> None:
    """TTFT per turn; TBT within turns, not between them; throughput over the whole run."""
    turns = [TurnTimes(0.0, [1.0, 1.5, 1.5]), TurnTimes(10.0, [13.0, 13.5])]
    latencies = Latencies.of(Held(turns, 13.5, {}, 5))
    assert latencies.ttft[50.0] == pytest.approx(2.0)
    assert latencies.ttft[99.0] == pytest.approx(2.98)
    assert latencies.tbt[50.0] == 0.5
    assert latencies.tbt[99.9] == 0.5
    assert latencies.throughput == pytest.approx(5 / 13.5)


def test_whoever_waits_when_all_is_stopped_counts_with_that() -> None:
    """A turn without a token has waited for one, and one without the rest for the next."""
    turns = [TurnTimes(0.0, [], given_up_at=8.0), TurnTimes(1.0, [3.0, 4.0], given_up_at=8.0)]
    latencies = Latencies.of(Held(turns, 8.0, {}, 2))
    assert latencies.ttft[50.0] == pytest.approx(5.0)
    assert latencies.tbt[50.0] == pytest.approx(2.5)


def test_a_run_that_is_stopped_knows_what_came() -> None:
    """The same conversations, stopped half way: fewer answers, and those there are are the same."""
    conversations = make_conversations(ROWS, 6, 0.0, 0.0, SMALL.context, seed=2, scale=0.25)
    options = make_variants(SMALL.block_bytes, rerank_steps=10, seed=2)[GROUPS].options
    whole = simulate(SMALL, conversations, options)
    halfway = max(whole.latencies.ttft.values())
    stopped = simulate(SMALL, conversations, options, most_seconds=halfway)
    assert stopped.digests.items() < whole.digests.items()
    check_runs({BLOCKS: [whole], GROUPS: [stopped]}, "small")
    assert stopped.latencies.ttft[99.0] <= halfway


def test_runs_are_kept_as_they_end(tmp_path: Path) -> None:
    """What was measured is found again, half a line is made anew, another commit's is not used."""
    path = tmp_path / "runs.jsonl"
    kept = KeptRuns(str(path))
    kept.keep_run("knee", AUTO, 1, run_of(1.0))
    kept.keep_numbers("knee", "capacity", 0, (2.0, 0.5))
    kept.keep_run("knee", AUTO, 2, run_of(2.0))
    path.write_bytes(path.read_bytes()[:-5])
    again = KeptRuns(str(path))
    assert again.run("knee", AUTO, 1) == run_of(1.0)
    assert again.numbers("knee", "capacity") == (2.0, 0.5)
    assert again.run("knee", AUTO, 2) is None
    again.keep_run("knee", AUTO, 2, run_of(3.0))
    assert KeptRuns(str(path)).run("knee", AUTO, 2) == run_of(3.0)
    path.write_bytes(re.sub(rb'"commit":"[^"]*"', b'"commit":"another"', path.read_bytes()))
    assert KeptRuns(str(path)).run("knee", AUTO, 1) is None
    path.write_bytes(b"not ours\n" + path.read_bytes())
    with pytest.raises(ConfigError, match="line 1"):
        KeptRuns(str(path))


def test_kept_runs_need_no_file() -> None:
    """Without a path nothing is written, and nothing was kept by others."""
    kept = KeptRuns()
    kept.keep_run("knee", AUTO, 1, run_of(1.0))
    assert kept.run("knee", AUTO, 1) == run_of(1.0)
    assert KeptRuns().run("knee", AUTO, 1) is None


def test_rows_have_medians_of_ratios() -> None:
    """A run is compared with the baseline's run over the same conversations; more throughput is better."""
    report = Report("switch")
    runs = {
        BLOCKS: [run_of(1.0), run_of(4.0), run_of(9.0)],
        AUTO: [run_of(0.5), run_of(1.0), run_of(3.0, num_bytes=0)],
        RECOMPUTE: [run_of(2.0, num_bytes=0)] * 3,
    }
    add_rows(report, "a load", runs)
    add_recompute_rows(report, "a load", AUTO, runs)
    found = {(row.case, row.metric, row.against): row for row in report.rows}
    row = found["a load: auto", "P99 TTFT", BLOCKS]
    assert (row.value, row.ratio, row.runs) == (1.0, 3.0, 3)
    assert found["a load: auto", "P99 TTFT", RECOMPUTE].ratio == 2.0
    assert found[f"a load: {BLOCKS}", "throughput", BLOCKS].ratio == 1.0
    assert ("a load: recompute", "bytes out", BLOCKS) not in found


def test_runs_that_say_nothing_are_refused() -> None:
    """Nobody preempted, except where that is known; and answers that differ, always."""
    quiet = run_of(1.0, num_preemptions=0)
    check_runs({BLOCKS: [run_of(1.0)], AUTO: [run_of(1.0)]}, "knee")
    check_runs({BLOCKS: [quiet]}, "light", is_light=True)
    with pytest.raises(NothingMeasured, match="preempted"):
        check_runs({BLOCKS: [quiet], AUTO: [run_of(1.0)]}, "knee")
    with pytest.raises(NothingMeasured, match=r"'auto'.*\[0\]"):
        check_runs({BLOCKS: [quiet], AUTO: [run_of(1.0, digests={0: "other"})]}, "light", is_light=True)


def test_loads_are_chosen_by_name() -> None:
    """All, some, and a stranger by its name."""
    loads = choose_loads(None)
    assert len(loads) == 5
    assert choose_loads(",".join(load.name for load in loads)) == loads
    assert [load.name for load in choose_loads("knee, light")] == ["light", "knee"]
    with pytest.raises(ConfigError, match="'midday'"):
        choose_loads("midday")


def test_contexts_are_chosen_by_length() -> None:
    """All that fit when none is named; what leaves no room for turns is refused, and what is no number."""
    assert choose_contexts(None, 400) == [32, 64, 128, 256]
    assert choose_contexts("299, 7", 400) == [299, 7]
    for listed, wrong in (("32,300", "300"), ("0", "0"), ("many", "many"), ("8,,9", ""), ("-5", "-5")):
        with pytest.raises(ConfigError, match=f"context '{wrong}' is not a number from 1 to 299"):
            choose_contexts(listed, 400)


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_memory_goes_to_the_tier_that_was_named(tier: Tier) -> None:
    """All of it, and the other tier is not there: a small run on the real device, and one switch alone."""
    machine = describe({"device": "cpu", "threads": 1}, tier)
    assert machine.below(5) == {"swap_mib": 5 * (tier == "host"), "swap_file_mib": 5 * (tier == "disk")}
    conversations = make_conversations(ROWS, 6, 0.0, 0.0, 512, seed=2, scale=0.25)
    options = make_variants(machine.block_bytes(16), rerank_steps=10, seed=2)[BLOCKS].options
    run = hold(machine, conversations, {**options, **machine.below(64)}, pool_mib=2)
    assert len(run.digests) == 6
    assert run.num_preemptions
    assert run.num_bytes_out
    report = Report("switch")
    measure_crossover(machine, report, [64], KeptRuns(), lambda: None)
    assert all(("swap file" in row.case) == (tier == "disk") for row in report.rows)
    assert len(report.rows) == 3  # the last one, as predicted, from what the driver measured of that tier


class AllKnown(KeptRuns):
    """Everything was measured before."""

    def run(self, case: str, what: str, seed: int) -> SwitchRun:
        return run_of(1.0)

    def numbers(self, case: str, what: str, seed: int = 0) -> tuple[float, ...]:
        return 0.5, 0.1


def test_each_report_has_what_is_known_so_far_once() -> None:
    """Switches alone, the search, then the rounds: no report repeats a row or loses one of the last."""
    options = {"device": "cpu", "threads": 1}
    reports = list(measure_real(ROWS, options, 0.5, 2, AllKnown(), None, "host"))
    assert len(reports) == 4
    named = [[(row.case, row.metric, row.against) for row in report.rows] for report in reports]
    assert all(len(names) == len(set(names)) for names in named)
    assert named[1][: len(named[0])] == named[0]
    assert named[2][: len(named[1])] == named[1]
    assert named[3] == named[2]


def test_the_simulated_device_has_no_swap_file(capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused by name, instead of a host area that is called a disk."""
    assert cli.main(["bench", "switch", "--device", "sim", "--tier", "disk"]) == 2
    assert "tier is for a real device" in capsys.readouterr().err


def test_models_of_a_shape_come_and_go() -> None:
    """A folder with a model while it is needed; an unknown shape is refused by name."""
    with random_model("tiny") as path:
        assert {file.name for file in Path(path).iterdir()} == {"config.json", "model.safetensors"}
    assert not Path(path).exists()
    with pytest.raises(ConfigError, match="'huge'"), random_model("huge"):
        pass


def test_variants_are_configurations() -> None:
    """Each variant's options are fields of Config that are accepted together."""
    variants = make_variants(block_bytes=32 << 10, rerank_steps=25, seed=3)
    assert all(Config(**variant.options) for variant in variants.values())
    assert variants[BLOCKS].options["swap_piece_kib"] == 32


def test_all_ways_give_the_same_answers() -> None:
    """Small runs on the virtual clock: the same tokens, preemptions, and what each way is said to do."""
    conversations = make_conversations(ROWS, 6, 0.0, 0.0, SMALL.context, seed=2, scale=0.25)
    variants = make_variants(SMALL.block_bytes, rerank_steps=10, seed=2)
    runs = {
        name: simulate(SMALL, conversations, variants[name].options)
        for name in (FCFS, RECOMPUTE, BLOCKS, GROUPS, REUSE)
    }
    check_runs({name: [run] for name, run in runs.items()}, "small")
    assert set(runs[FCFS].digests) == set(range(6))
    assert runs[RECOMPUTE].num_bytes_out == 0
    assert runs[RECOMPUTE].num_prompt_tokens > runs[GROUPS].num_prompt_tokens
    assert runs[BLOCKS].latencies.tbt[99.9] > runs[GROUPS].latencies.tbt[99.9]
    assert 0 < runs[REUSE].num_bytes_out < runs[GROUPS].num_bytes_out
    assert simulate(SMALL, conversations, variants[REUSE].options) == runs[REUSE]
