"""Checks of a whole config: ids, links, defaults, windows and folders."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from factory.importers.simpletuner.dataset_order import named
from factory.importers.simpletuner.entry import KINDS, SAMPLES, TRAINED, Entry
from factory.importers.simpletuner.entry_checks import entry_problems
from factory.importers.simpletuner.problem import ImportProblem, shown

# Links to other entries, and the kind each must lead to; "" is any kind.
LINKS = {
    "text_embeds": "text_embeds",
    "image_embeds": "image_embeds",
    "conditioning_image_embeds": "conditioning_image_embeds",
    "conditioning_data": "conditioning",
    "s2v_datasets": "audio",
    "source_dataset_id": "",
}
# Ids that a message lists; a suggestion says which one is meant.
SHOWN_IDS = 10


def problems(
    entries: Sequence[Entry], *, absent: Iterable[str] = (), paths: bool = True
) -> Iterator[ImportProblem]:
    """Yield everything that is wrong, entry by entry and then as a whole.

    Args:
        entries: The enabled entries, in order.
        absent: Ids of entries that are disabled, for messages.
        paths: Whether to look if local folders exist.
    """
    if not any(entry.kind in TRAINED or entry.kind not in KINDS for entry in entries):
        yield ImportProblem(
            "empty_config", "no dataset to train on is declared, or every one is disabled"
        )
    links = _Links({entry.id: entry.kind for entry in entries if entry.id}, frozenset(absent))
    for entry in entries:
        yield from entry_problems(entry)
        yield from links.problems(entry)
    yield from _default_texts(entries)
    yield from _schedule(entries)
    yield from _shared_folders(entries)
    yield from _controlnet(entries)
    if paths:
        yield from _folders(entries)


class _Links:
    """Looks up what entries refer to.

    Args:
        kinds: The kind of each dataset, by its id.
        absent: Ids of entries that are disabled.
    """

    def __init__(self, kinds: Mapping[str, str], absent: frozenset[str]) -> None:
        self._kinds, self._absent = kinds, absent
        self._suggested: dict[tuple[str, str], str] = {}

    def problems(self, entry: Entry) -> Iterator[ImportProblem]:
        for key, kind in LINKS.items():
            for name in named(entry.get(key)):
                found = self._kinds.get(name)
                if found is not None and kind in ("", found):
                    continue
                what = f"{entry.title} {key} names {shown(name)}, which "
                if name in self._absent:
                    what += "is disabled; enable it, or remove the link"
                elif found is not None:
                    what += f"is a dataset of kind {found}, not {kind}"
                else:
                    what += f"is no dataset of this file; {self._suggest(name, kind)}"
                yield ImportProblem("unknown_reference", what)

    def _suggest(self, name: str, kind: str) -> str:
        """Return what could have been meant; looked for once, since all may name the same."""
        if (name, kind) not in self._suggested:
            known = [other for other, its in self._kinds.items() if kind in ("", its)]
            guess = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {shown(guess[0])}? " if guess else ""
            listed = ", ".join(known[:SHOWN_IDS]) or "none"
            more = f" and {len(known) - SHOWN_IDS} more" if len(known) > SHOWN_IDS else ""
            self._suggested[name, kind] = f"{hint}there is {listed}{more}"
        return self._suggested[name, kind]


def _default_texts(entries: Sequence[Entry]) -> Iterator[ImportProblem]:
    marked = [e.id for e in entries if e.kind == "text_embeds" and e.filled.get("default")]
    if len(marked) > 1:
        yield ImportProblem(
            "text_embed_default",
            f"{', '.join(marked)} are all marked default; only one text_embeds set can be",
        )


def _schedule(entries: Sequence[Entry]) -> Iterator[ImportProblem]:
    trained = [entry for entry in entries if entry.kind in TRAINED]
    if trained and not any(entry.is_active_at_start for entry in trained):
        yield ImportProblem(
            "schedule",
            "no dataset is active at the first step; set start_epoch to 1 and start_step to 0 "
            f"for one of {', '.join(entry.id for entry in trained)}",
        )


def _shared_folders(entries: Sequence[Entry]) -> Iterator[ImportProblem]:
    """Yield a problem for each latents folder that is also used by another set."""
    texts = {str(e.filled.get("cache_dir")) for e in entries if e.kind == "text_embeds"}
    taken: dict[str, str] = {}
    for entry in entries:
        folder = entry.filled.get("cache_dir_vae")
        if not isinstance(folder, str) or not folder:
            continue
        other = taken.setdefault(folder, entry.id)
        if folder in texts:
            text = f"{entry.title} cache_dir_vae is also the folder of a text_embeds set"
            yield ImportProblem("unsupported_combination", text)
        elif other != entry.id:
            text = f"{entry.title} cache_dir_vae is also the folder of {shown(other)}"
            yield ImportProblem("unsupported_combination", text)


def _controlnet(entries: Sequence[Entry]) -> Iterator[ImportProblem]:
    for entry in entries:
        if not entry.arguments["controlnet"] or entry.kind not in ("image", "video"):
            continue
        if not entry.filled.get("conditioning_data") and not entry.filled.get("conditioning"):
            yield ImportProblem(
                "missing_key",
                f"{entry.title} needs conditioning_data, since args.controlnet is set",
            )


def _folders(entries: Sequence[Entry]) -> Iterator[ImportProblem]:
    for entry in entries:
        folder: Any = entry.get("instance_data_dir")
        if entry.storage != "local" or entry.kind not in (*SAMPLES, "caption"):
            continue
        if isinstance(folder, str) and folder.strip() and not _is_there(folder):
            yield ImportProblem(
                "missing_path", f"{entry.title} instance_data_dir: there is no folder {folder}"
            )


def _is_there(folder: str) -> bool:
    try:
        return Path(folder).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # a name too long, a NUL, an unknown user
        return False
