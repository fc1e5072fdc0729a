"""What came of every key: the rows that are printed and kept beside the import."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from factory.importers.simpletuner.convert import Conversion
from factory.importers.simpletuner.dataset import Dataset, KeyNote, Outcome
from factory.importers.simpletuner.entry import TRUTHY, as_switch
from factory.importers.simpletuner.keys import ARGUMENTS, BLOCKS, KEYS, PLACES, Fate, Key, look_up
from factory.importers.simpletuner.variables import reads_environment

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_DROPOUT = "caption_dropout_probability"
_OUTCOMES = {Fate.needless: Outcome.needless, Fate.unsupported: Outcome.left_out}
# Keys that are carried by choosing a kind or an option, or into what datasets share.
_ELSEWHERE = ("id", "type", "metadata_backend", "conditioning_data", "train_batch_size")
# Least likeness of a suggestion to an unknown key, from 0 to 1.
_ALIKE = 0.6


@dataclass(frozen=True)
class ReportRow:
    """What came of one key of one dataset.

    Attributes:
        dataset: The dataset's name; "" for the trainer's arguments.
        key: Upstream's key, in dotted form; "" for the dataset as a whole.
        outcome: In a word.
        text: Where it went, or why not; never a value of the config.
    """

    dataset: str
    key: str
    outcome: Outcome
    text: str


def rows(conversion: Conversion) -> list[ReportRow]:
    """Return one row for each key of each entry, in their order."""
    found = [row for dataset in conversion.datasets for row in _dataset_rows(dataset)]
    return [*found, *_argument_rows(conversion)]


def one_line(text: str) -> str:
    """Return text fit for a comment or a table cell: no line ends, no control characters."""
    return _CONTROL.sub(" ", text)


def _dataset_rows(dataset: Dataset) -> Iterator[ReportRow]:
    name = dataset.name
    if dataset.entry.id != name:
        text = f"the id {dataset.entry.id!r} is called {name} here"
        yield ReportRow(name, "", Outcome.changed, one_line(text))
    if dataset.left_out:
        yield ReportRow(name, "", Outcome.left_out, dataset.left_out)
        return
    for key in flat(dataset.entry.filled):
        note = outcome(dataset, key)
        yield ReportRow(name, one_line(key), note.outcome, one_line(note.text))


def flat(keys: Mapping[str, object], before: str = "") -> Iterator[str]:
    """Yield the keys of an entry that have a value, those of blocks with a dot."""
    for key, value in keys.items():
        name = before + key
        if value is None:
            continue
        yield name
        if isinstance(value, Mapping) and name in BLOCKS:
            yield from flat(value, f"{name}.")


def outcome(dataset: Dataset, key: str) -> KeyNote:
    """Return what came of a key: what was noted, where it was placed, or what the table says."""
    value = value_of(dataset.entry.filled, key)
    if key not in PLACES and reads_environment(value):
        what = "its {env:…} stays as it is written: only keys of places and credentials are filled"
        return KeyNote(Outcome.changed, what)
    if key in TRUTHY and isinstance(value, str) and as_switch(value) is False and value.strip():
        return KeyNote(
            Outcome.changed, f"taken for true, as upstream takes any text; write {key}=false"
        )
    if key in dataset.notes:
        return dataset.notes[key]
    if key in dataset.placed:
        places = ", ".join(f"`{at}`" for at in dict.fromkeys(dataset.placed[key]))
        line = look_up(key)
        more = f"; {line.reason}" if line is not None and line.reason else ""
        return KeyNote(Outcome.carried, f"to {places}{more}")
    line = look_up(key)
    if line is not None and line.fate is Fate.unsupported and not value:
        return KeyNote(Outcome.needless, "switched off")
    return KeyNote(Outcome.unknown, _unknown(key)) if line is None else _by_table(key, line)


def value_of(keys: Mapping[str, Any], name: str) -> Any:
    """Return the value of a key in dotted form; of a block's keys, what stands in the block."""
    if name in keys:
        return keys[name]
    block, _, rest = name.partition(".")
    inside = keys.get(block)
    return value_of(inside, rest) if rest and isinstance(inside, Mapping) else None


def _by_table(key: str, line: Key) -> KeyNote:
    """Return what the table says of a key that no option was set from."""
    if line.fate is not Fate.carried:
        return KeyNote(_OUTCOMES[line.fate], line.reason)
    if line.secret or not line.targets or key in _ELSEWHERE:
        return KeyNote(Outcome.carried, line.reason or "says what the entry is")
    return KeyNote(Outcome.needless, "the default here, or of no effect in this entry")


@cache
def _unknown(key: str) -> str:
    block, _, name = key.rpartition(".")
    known = [line.rpartition(".")[2] for line in KEYS if line.rpartition(".")[0] == block]
    guess = difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)
    hint = f"did you mean {guess[0]!r}?" if guess else "nothing is called alike"
    return f"upstream has no such key and would ignore it; {hint}"


def _argument_rows(conversion: Conversion) -> Iterator[ReportRow]:
    given = conversion.arguments.given
    for key in given:
        note = conversion.encoders.notes.get(key)
        if note is not None:
            yield ReportRow("", key, note.outcome, one_line(note.text))
            continue
        line = ARGUMENTS.get(key)
        if line is None or key == _DROPOUT:
            continue  # most of a trainer's arguments have nothing to do with data
        missing = _missing(conversion.kept, key)
        if missing is not None:
            yield ReportRow("", key, missing.outcome, missing.text)
        elif line.fate is Fate.carried:
            targets = ", ".join(f"`{target}`" for target in line.targets)
            yield ReportRow("", key, Outcome.carried, line.reason or f"to {targets}")
        else:
            yield ReportRow("", key, _OUTCOMES[line.fate], line.reason)
    for dataset in conversion.kept:
        name = f"args.{_DROPOUT}"
        if name in dataset.notes or name in dataset.placed:
            note = outcome(dataset, name)
            source = "" if _DROPOUT in given else " (upstream's default, 0.1)"
            yield ReportRow("", _DROPOUT, note.outcome, note.text + source)
            return


def _missing(datasets: Sequence[Dataset], key: str) -> KeyNote | None:
    """Return the note of an argument that datasets follow and this version has no option for."""
    for dataset in datasets:
        note = dataset.notes.get(key)
        follows = dataset.entry.filled.get(key) is None
        if note is not None and note.outcome is Outcome.later and follows:
            return note
    return None
