"""Is anything slower than it was, measured by its ratio to a floor in the same run?

Every benchmark that has a `quick` is timed in turns with its floor, and the median of floor / work
is compared with the one in baseline.json: below 0.8 of it, twice, the run fails. Machines differ,
ratios less so, and the baseline holds lower quartiles of several rounds on a busy machine; each
number has its reason beside it. Names that end in `_wall` compare the clock on the wall, the
others processor time. `--write-baseline` measures the numbers anew and keeps the reasons.
"""

import argparse
import json
import pkgutil
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import benches
from benches import Line, Quick

BASELINE = Path(__file__).parent / "baseline.json"
# Of the baseline: what is lost below it is more than ratios of one machine vary by.
LIMIT = 0.8
# Turns of one measurement at most, and the seconds after which no further one is begun.
SHORT_TURNS, SHORT_S = 9, 1.5
TURNS, TURNS_S = 25, 20.0
# Fewer turns have no steady median, so these are done in any case, ...
LEAST_TURNS = 5
# ... but for what takes so many seconds that two must do: the short form stays under a minute.
SLOW_S = 8.0
# Of `--write-baseline`: a quartile needs at least four.
ROUNDS = 5
NO_REASON = "measured; say here what it is made of"

Baseline = dict[str, dict[str, Any]]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is measured, and what it is compared with."""
    parser.add_argument("--short", action="store_true", help="fewer turns, under a minute")
    parser.add_argument("--only", nargs="+", default=[], metavar="BENCH", help="only these files")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="file of the ratios")
    parser.add_argument("--write-baseline", action="store_true", help="write its ratios anew")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of --write-baseline")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Measure every ratio; compare them with the baseline, or write it."""
    path = options.baseline
    baseline: Baseline = json.loads(path.read_text()) if path.exists() else {}
    if options.write_baseline:
        yield from write(options, path, baseline)
        return
    problems = [] if options.only else stale(baseline, watched())
    for bench, quick in quicks(options.only, short=options.short):
        ratios, problem = judge(bench, quick, baseline, lambda q: measure(q, short=options.short))
        problems += [problem] if problem else []
        known = baseline.get(quick.name, {}).get("ratio")
        found = {"baseline": known, "limit": known and round(LIMIT * known, 4)}
        yield quick.name, ratios[-1], "floor / work", {**found, "measured": len(ratios)}
    if problems:
        raise SystemExit("\n".join(problems))


def watched() -> list[str]:
    """Return the benchmarks that have a quick form."""
    names = [found.name for found in pkgutil.iter_modules(benches.__path__)]
    return [name for name in names if hasattr(import_module(f"benches.{name}"), "quick")]


def quicks(only: Collection[str], *, short: bool) -> Iterator[tuple[str, Quick]]:
    """Yield each benchmark's name and what is measured of it, while its data is there."""
    names = watched()
    if unknown := sorted(set(only) - set(names)):
        raise SystemExit(
            f"regress --only {' '.join(unknown)}: no benchmark of this name has a quick form; "
            f"these have: {', '.join(names)}"
        )
    for name in only or names:
        start = import_module(f"benches.{name}").quick
        with (
            tempfile.TemporaryDirectory() as scratch,
            closing(start(Path(scratch), short=short)) as found,
        ):
            for quick in found:
                yield name, quick


def measure(quick: Quick, *, short: bool) -> float:
    """Return the median of floor / work in several turns, the first of which is not counted."""
    most, seconds = (SHORT_TURNS, SHORT_S) if short else (TURNS, TURNS_S)
    quick.turn()
    ratios: list[float] = []
    begun = time.monotonic()
    while len(ratios) < most:
        taken = time.monotonic() - begun
        if taken > seconds and (len(ratios) >= LEAST_TURNS or (short and taken > SLOW_S)):
            break
        floor, work = quick.turn()
        ratios.append(floor / work)
    return statistics.median(ratios)


def judge(
    bench: str, quick: Quick, baseline: Baseline, measured: Callable[[Quick], float]
) -> tuple[list[float], str | None]:
    """Return the ratios found, a second one where the first is too low, and what is wrong."""
    ratios = [measured(quick)]
    if quick.name not in baseline:
        return ratios, (
            f"{quick.name}: {ratios[0]:.3f} of its floor, and no baseline to compare it with; "
            f"`python scripts/bench.py regress --only {bench} --write-baseline` writes one, then "
            'put its reason beside it as "why"'
        )
    known = float(baseline[quick.name]["ratio"])
    if ratios[0] >= LIMIT * known:
        return ratios, None
    ratios.append(measured(quick))
    if ratios[1] >= LIMIT * known:
        return ratios, None
    return ratios, (
        f"{quick.name}: {ratios[0]:.3f} of its floor, then {ratios[1]:.3f}; the baseline is "
        f"{known:.3f}, the limit {LIMIT * known:.3f} ({LIMIT} of it). `python scripts/bench.py "
        f"{bench} --help` says what is measured in full; run it on this version and on the one "
        f"before. If the loss is meant, `python scripts/bench.py regress --only {bench} "
        "--write-baseline`, and say why in scripts/benches/baseline.json"
    )


def stale(baseline: Baseline, names: Collection[str]) -> list[str]:
    """Return what is wrong with entries of the baseline that no benchmark measures."""
    return [
        f"{name}: in the baseline, but there is no benchmark {entry['bench']} with a quick form; "
        "take the entry out of scripts/benches/baseline.json"
        for name, entry in baseline.items()
        if entry["bench"] not in names
    ]


def write(options: argparse.Namespace, path: Path, baseline: Baseline) -> Iterator[Line]:
    """Measure several rounds, and put the lower quartile of each ratio into the baseline."""
    rounds: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for bench, quick in quicks(options.only, short=False):
            rounds.setdefault(quick.name, []).append(measure(quick, short=True))
            baseline.setdefault(quick.name, {"bench": bench, "ratio": 0.0, "why": NO_REASON})
    for name, ratios in rounds.items():
        baseline[name]["ratio"] = round(lower_quartile(ratios), 4)
        baseline[name]["rounds"] = [round(ratio, 3) for ratio in sorted(ratios)]
        yield name, baseline[name]["ratio"], "floor / work", {"rounds": baseline[name]["rounds"]}
    path.write_text(json.dumps(dict(sorted(baseline.items())), indent=2) + "\n")


def lower_quartile(ratios: list[float]) -> float:
    """Return the ratio that three of four are not below; of one, itself."""
    if len(ratios) < 2:  # noqa: PLR2004 - quantiles are of two at least
        return ratios[0]
    return statistics.quantiles(ratios, n=4, method="inclusive")[0]
