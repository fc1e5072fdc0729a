"""Stopped anywhere and resumed with other numbers of anything: the same samples in every step."""

import io
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from factory.lightning.loaders import EvalLoader, TrainLoader
from factory.lightning.position import Position
from factory.lightning.resume import check_plan
from factory.runtime.batches.batch import Batch
from factory.runtime.batches.request import BatchRequest
from factory.runtime.prefetch.batch_fetcher import Prefetch
from factory.sampling.active_window import ActiveWindow
from factory.sampling.evaluation import EvalPlan
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan
from factory.sampling.rank_shares import RankLayout
from factory.sampling.selection import Balanced, Random
from factory.sampling.strategies import AutoWeighting, UniformWeighting

TRIALS = 100
USUAL_TRIALS = 25  # each number of ranks and of micro-batches is among them
# Divides by 1, 2, 3, 4 and 6 ranks, and by as many micro-batches as leave a whole number.
BATCH = 24
RANKS = (1, 2, 3, 4, 6)


def backend(name: str, sizes: list[int], chance: random.Random, **settings: Any) -> PlanBackend:
    order = list(range(sum(sizes)))
    chance.shuffle(order)
    return PlanBackend(
        name=name, order=np.array(order), offsets=np.cumsum([0, *sizes]),
        buckets=tuple(f"{64 * (n + 1)}x64" for n in range(len(sizes))), identity=name, **settings,
    )  # fmt: skip


def mixture(chance: random.Random) -> Plan:
    """Return three weighted backends of several buckets, one perhaps in a window."""
    windows = [
        ActiveWindow(),
        ActiveWindow(start_step=chance.randint(2, 9)),
        ActiveWindow(end_step=9),
    ]
    backends = [
        backend(
            name, [chance.randint(5, 90) for _ in range(buckets)], chance,
            probability=chance.choice([0.5, 1.0, 2.5]), repeats=chance.randint(0, 2),
            window=ActiveWindow() if name == "a" else chance.choice(windows),
        )
        for name, buckets in (("a", 3), ("b", 2), ("c", 4))
    ]  # fmt: skip
    return Plan(
        backends, batch_size=BATCH, seed=chance.randint(0, 999),
        weighting=chance.choice([UniformWeighting(), AutoWeighting()]),
        selection=chance.choice([Balanced(), Random()]),
    )  # fmt: skip


def collate(part: BatchRequest) -> Batch:
    """Return a batch that tells its samples and nothing else."""
    none = torch.zeros(len(part.rows), 2)
    valid = np.ones(len(part.rows), bool) if part.valid is None else part.valid
    step = part.step
    return Batch(
        step.backend, step.bucket, step.epoch, step.step, step.global_step,
        torch.from_numpy(part.rows), [f"{step.backend}/{row}" for row in part.rows.tolist()],
        [], none, none, none, torch.from_numpy(valid),
    )  # fmt: skip


class Run:
    """All ranks of a run between its start and its end, of whatever kind."""

    def __init__(self, plan: Plan, held: EvalPlan, chance: random.Random, state: Any) -> None:
        """Start with random settings, from a state in a file or from nothing."""
        self.plan, self.held, self.chance = plan, held, chance
        self.ranks = chance.choice(RANKS)
        share = BATCH // self.ranks
        self.micros = chance.choice([n for n in (1, 2, 3, 4) if not share % n])
        mode = "inline" if chance.random() < 0.7 else "thread"
        self.prefetch = Prefetch(
            mode=mode, batches=chance.randint(1, 6), workers=chance.randint(1, 3)
        )
        self.layouts = [RankLayout(rank, self.ranks, self.micros) for rank in range(self.ranks)]
        self.positions = [Position() for _ in self.layouts]
        for position in self.positions:
            position.divide(self.micros)
            if state is not None:
                check_plan(state["plan"], plan.describe(), 0, accepted=False)
                position.move(state["epoch"], state["step"])
        self.loaders = [
            TrainLoader(plan, collate, self.prefetch, layout, position)
            for layout, position in zip(self.layouts, self.positions, strict=True)
        ]

    def micro_batches(self) -> Iterator[list[Batch]]:
        """Yield what the ranks are given at the same time, epoch after epoch; count it after."""
        while True:
            for given in zip(*self.loaders, strict=True):
                yield list(given)
                for position in self.positions:
                    position.count()
            for position in self.positions:
                position.finish()

    def validate(self, batches: int | None) -> list[str]:
        """Return the samples of a validation, which may be left in the middle."""
        seen = []
        for layout in self.layouts:
            loader = EvalLoader([self.held], collate, self.prefetch, layout)
            for number, batch in enumerate(loader):
                if number == batches:
                    break
                pairs = zip(batch.keys, batch.valid.tolist(), strict=True)
                seen += [key for key, valid in pairs if valid]
            loader.close()
        return seen

    def state(self) -> Any:
        """Return what a checkpoint holds, from any rank, as it comes out of a file."""
        position = self.chance.choice(self.positions)
        epoch, step = position.committed
        told = {"plan": self.plan.describe(), "epoch": epoch, "step": step}
        if self.chance.random() < 0.5:
            return json.loads(json.dumps(told))
        file = io.BytesIO()
        torch.save(told, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def close(self) -> None:
        for loader in self.loaders:
            loader.close()


def expected(plan: Plan, steps: int) -> dict[int, tuple[str, str, list[str]]]:
    planned = [plan.at(*plan.position(step)) for step in range(steps)]
    return {
        step.global_step: (
            step.backend, step.bucket, [f"{step.backend}/{row}" for row in step.rows.tolist()],
        )
        for step in planned
    }  # fmt: skip


def until_killed(run: Run, seen: dict[int, Any], goal: int, saved: Any) -> Any:
    """Train until the goal or a random end; return the last state that was saved by then."""
    life = run.chance.randint(0, 40)
    every = run.chance.randint(1, 3)  # steps between checkpoints
    parts: dict[int, list[list[str]]] = defaultdict(lambda: [[] for _ in range(run.ranks)])
    held = sorted(f"held/{row}" for row in range(len(run.held.backend.order)))
    for number, given in enumerate(run.micro_batches(), 1):
        assert len({(b.backend, b.bucket, b.global_step, len(b)) for b in given}) == 1
        step = given[0].global_step
        for rank, batch in enumerate(given):
            parts[step][rank] += batch.keys
        if number % run.micros == 0:
            keys = [key for part in parts[step] for key in part]
            assert seen.setdefault(step, keys) == keys  # steps may be done again, but not anew
            if step == goal - 1:
                return None
            if step % 5 == 4:
                assert sorted(run.validate(None)) == held
            elif run.chance.random() < 0.1:
                run.validate(1)
                return saved
        # Before the trainer counts the micro-batch just done: as if saved while it is trained.
        if number % every == 0:
            saved = run.state()
        if number > life:
            return saved
    raise AssertionError("a plan has no end")


@pytest.mark.parametrize(
    "trial",
    [
        *range(USUAL_TRIALS),
        *(pytest.param(n, marks=pytest.mark.long) for n in range(USUAL_TRIALS, TRIALS)),
    ],
)
def test_a_run_that_is_killed_and_resumed_otherwise_has_the_same_steps(trial: int) -> None:
    chance = random.Random(trial)
    plan = mixture(chance)
    held = EvalPlan(backend("held", [7, 4], chance), batch_size=BATCH)
    goal = chance.randint(8, 30)
    seen: dict[int, list[str]] = {}
    saved = None
    while True:
        run = Run(plan, held, chance, saved)
        saved = until_killed(run, seen, goal, saved)
        run.close()
        if goal - 1 in seen:
            break
    wanted = expected(plan, goal)
    assert sorted(seen) == list(range(goal))
    for step, (_, _, keys) in wanted.items():
        assert seen[step] == keys


@pytest.mark.parametrize("ranks", range(1, 7))
def test_a_mean_over_valid_samples_is_the_same_for_any_number_of_ranks(ranks: int) -> None:
    plan = EvalPlan(backend("held", [7, 4, 1], random.Random(1)), batch_size=5)
    total, count, seen = 0.0, 0, []
    lengths = set()
    for rank in range(ranks):
        loader = EvalLoader([plan], collate, Prefetch(mode="inline"), RankLayout(rank, ranks))
        batches = list(loader)
        lengths.add(tuple(len(batch) for batch in batches))
        assert len(batches) == len(loader)
        for batch in batches:
            rows = batch.rows[batch.valid]
            total, count = total + float(rows.sum()), count + len(rows)
            seen += rows.tolist()
    assert len(lengths) == 1  # equal shapes on every rank
    assert sorted(seen) == list(range(12))
    assert total / count == 5.5


def test_ranks_of_a_context_parallel_block_get_the_same_samples() -> None:
    plan = mixture(random.Random(5))
    shares = {}
    for rank in range(4):
        layout = RankLayout(rank, 4, 2, context_parallel=2)
        loader = TrainLoader(plan, collate, Prefetch(mode="inline"), layout, Position())
        shares[rank] = [batch.keys for batch in loader]
    assert shares[0] == shares[1]
    assert shares[2] == shares[3]
    first = [f"{plan.at(0, 0).backend}/{row}" for row in plan.at(0, 0).rows.tolist()]
    assert shares[0][0] + shares[0][1] + shares[2][0] + shares[2][1] == first
    held = EvalPlan(backend("held", [3], random.Random(1)), batch_size=5)
    given = [
        [
            (batch.keys, batch.valid.tolist())
            for batch in EvalLoader(
                [held], collate, Prefetch(mode="inline"), RankLayout(rank, 4, 1, context_parallel=2)
            )
        ]
        for rank in range(4)
    ]
    assert given[0] == given[1]
    assert given[2] == given[3]
    assert [valid for rank in (0, 2) for _, valid in given[rank]] == [[True, True], [True, False]]
