"""The data state in a checkpoint: checksummed when saved, validated when read."""

import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from factory.errors import PlanError, ResumeError
from factory.lightning.resume import check_format
from factory.sampling.epoch_end import MOST_STEPS
from factory.sampling.fingerprint import hash_description
from factory.sampling.plan import Plan

# Where Lightning's checkpoints hold it, whatever a subclass of the data module is called. It is
# the name of the class, under which Lightning itself put it before.
KEY = "FactoryDataModule"
CHECKSUM = "checksum"
# Every epoch has a step, and nobody trains for so many.
_MOST_EPOCHS = 2**31
# What tells a state from whatever else a checkpoint holds under a class's name.
_MARKS_OF_A_STATE = {"fingerprint", "plan", "epoch", "step"}
_HASH = re.compile(r"[0-9a-f]{32}")


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with its checksum."""
    rest = {key: value for key, value in state.items() if key != CHECKSUM}
    return {**rest, CHECKSUM: _hash_of(rest, "")}


def find_state(checkpoint: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Return the data's state in a checkpoint of Lightning's; None if there is none.

    Args:
        checkpoint: The checkpoint.
        names: Under which names to look first, see `KEY`.

    Raises:
        ResumeError: There are several, and none under one of the names.
    """
    for name in names:
        if name in checkpoint:
            return checkpoint[name]
    # States were kept under the name of the subclass, which may be another one by now.
    found = {
        key: value
        for key, value in checkpoint.items()
        if isinstance(value, Mapping) and value.keys() >= _MARKS_OF_A_STATE
    }
    if len(found) > 1:
        raise ResumeError(
            f"the checkpoint holds several states of data, {', '.join(sorted(found))}, and none "
            f"under {KEY}: remove all but one"
        )
    return next(iter(found.values()), None)


def check_state(state: Any) -> None:
    """Refuse a state that is damaged, changed, or none.

    States saved before there were checksums are held against the plan they describe, and each
    value against its type and range.

    Raises:
        ResumeError: Names the value, and what it may be.
    """
    if not isinstance(state, Mapping):
        _refuse("", state, "a mapping")
    check_format(state)
    if CHECKSUM in state and state[CHECKSUM] != sealed(state)[CHECKSUM]:
        raise ResumeError(
            "the checkpoint's data state does not match its checksum: it was damaged or changed "
            "after it was saved; take another checkpoint"
        )
    _check_plan(state)
    _whole_number("epoch", state["epoch"], _MOST_EPOCHS)
    _whole_number("step", state["step"], MOST_STEPS)
    _check_cut(state.get("cut"))
    streams = state.get("streams", {})
    if not isinstance(streams, Mapping):
        _refuse("streams", streams, "a mapping of streams by name")
    for name, stream in streams.items():
        _check_stream(name, stream, state["plan"])


def check_place(plan: Plan, epoch: int, step: int) -> None:
    """Refuse a place that lies behind the end of its epoch.

    Args:
        plan: The plan of the state.
        epoch: The epoch, from 0.
        step: The completed steps in it.

    Raises:
        ResumeError: The epoch is shorter, or there is none.
    """
    if not step:
        return  # the epoch after a run's last one cannot be asked
    try:
        length = plan.steps(epoch)
    except PlanError as error:
        raise ResumeError(_damaged(f"it stands in epoch {epoch}, and {error}")) from error
    if step > length:
        _refuse("step", step, f"at most {length}, the length of epoch {epoch}")


def _check_plan(state: Mapping[str, Any]) -> None:
    fingerprint, plan = state["fingerprint"], state["plan"]
    if not isinstance(fingerprint, str) or not _HASH.fullmatch(fingerprint):
        _refuse("fingerprint", fingerprint, "32 hex digits")
    if not isinstance(plan, Mapping) or not isinstance(plan.get("backends", {}), Mapping):
        _refuse("plan", plan, "a plan's description")
    if _hash_of(plan, "plan") != fingerprint:
        _refuse("fingerprint", fingerprint, "that of the plan described beside it")


def _check_cut(cut: Any) -> None:
    if cut is None or (_is_whole(cut) and cut >= 0):
        return
    if not isinstance(cut, float) or not 0 <= cut < 1:
        _refuse("cut", cut, "null, a number of steps, or a share from 0 to below 1")


def _check_stream(name: Any, stream: Any, plan: Mapping[str, Any]) -> None:
    """Check where a stream goes on."""
    where, planned = f"streams.{name}", plan.get("backends", {}).get(name)
    if not isinstance(planned, Mapping):
        raise ResumeError(_damaged(f"{where} is of no backend of its plan"))
    _keys(where, stream, {"identity", "seed", "batch", "mark"})
    if stream["identity"] != planned.get("identity"):
        _refuse(f"{where}.identity", stream["identity"], "that of the plan")
    if not _is_whole(stream["seed"]) or stream["seed"] != plan.get("seed"):
        _refuse(f"{where}.seed", stream["seed"], "that of the plan")
    _whole_number(f"{where}.batch", stream["batch"])
    mark, where = stream["mark"], f"{where}.mark"
    _keys(where, mark, {"made", "pass_index", "taken", "fruitful", "waiting", "place", "counts"})
    _whole_number(f"{where}.made", mark["made"], stream["batch"])
    _whole_number(f"{where}.pass_index", mark["pass_index"])
    _whole_number(f"{where}.taken", mark["taken"])
    if not isinstance(mark["fruitful"], bool):
        _refuse(f"{where}.fruitful", mark["fruitful"], "true or false")
    _check_waiting(f"{where}.waiting", mark["waiting"], mark["taken"])
    _check_place(f"{where}.place", mark["place"], mark["taken"])
    _check_counts(f"{where}.counts", mark["counts"], mark)


def _check_waiting(where: str, waiting: Any, taken: int) -> None:
    if not isinstance(waiting, list | tuple):
        _refuse(where, waiting, "a list of rows")
    before = -1
    for row in waiting:
        _whole_number(where, row, taken - 1, least=before + 1)
        before = row


def _check_place(where: str, place: Any, taken: int) -> None:
    _keys(where, place, {"block", "shards", "state", "index"})
    _whole_number(f"{where}.block", place["block"], taken)  # a block has a row or more
    _whole_number(f"{where}.shards", place["shards"])
    _whole_number(f"{where}.index", place["index"])
    if place["state"] is not None and not isinstance(place["state"], Mapping):
        _refuse(f"{where}.state", place["state"], "null or the state of a shard")


def _check_counts(where: str, counts: Any, mark: Mapping[str, Any]) -> None:
    if not isinstance(counts, Mapping):
        _refuse(where, counts, "a mapping of numbers")
    for name, count in counts.items():
        _whole_number(f"{where}.{name}", count)
    for name, key in {"batches": "made", "passes": "pass_index"}.items():
        if counts.get(name, 0) != mark[key]:
            _refuse(f"{where}.{name}", counts.get(name, 0), f"{key}, which is {mark[key]}")


def _keys(where: str, value: Any, keys: set[str]) -> None:
    if not isinstance(value, Mapping) or value.keys() != keys:
        _refuse(where, value, f"a mapping of {', '.join(sorted(keys))}")


def _whole_number(where: str, value: Any, most: float = math.inf, *, least: float = 0) -> None:
    if not _is_whole(value) or not least <= value <= most:
        end = "" if most == math.inf else f" to {most}"
        _refuse(where, value, f"a whole number from {least}{end}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _hash_of(value: Mapping[str, Any], where: str) -> str:
    try:
        return hash_description(value)
    except (TypeError, ValueError, RecursionError):
        _refuse(where, value, "plain values")


def _refuse(where: str, value: Any, allowed: str) -> NoReturn:
    shown = reprlib.repr(value)
    raise ResumeError(_damaged(f"{where or 'it'} is {shown}, and must be {allowed}"))


def _damaged(what: str) -> str:
    return f"the checkpoint's data state is damaged: {what}; take another checkpoint"
