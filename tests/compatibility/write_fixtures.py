"""Write what later versions must read: catalogs, caches, a checkpoint, a ledger, hashes of batches.

Version 0.1 has run this, and what it wrote is never written again: a fixture that a later version
wrote would prove nothing of 0.1. It is kept to tell what the fixtures are, and to add others, of
later versions, in folders of their own: `python -m tests.compatibility.write_fixtures FOLDER`.
"""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import factory
from tests.compatibility.hashing import EVERY, digest
from tests.compatibility.kept import CACHES, FIXTURES, ROOT, fill_memory, module, overrides
from tests.compatibility.test_batches_witness import (
    RESUMED,
    SCENARIOS,
    STEPS_BEFORE,
    committed,
    hashes,
    started,
)
from tests.compatibility.world import HERE, write_clip, write_world

# The checkpoint lies within the second epoch of 11 steps; the hashes go on after it.
STEPS, SAVED_AT = 30, 16


def main(folder: Path, work: Path) -> None:
    """Write all fixtures to a folder, using another that is empty."""
    if folder == FIXTURES:
        clips = folder / "clips"
        clips.mkdir(parents=True)
        for number in range(2):
            write_clip(clips / f"{number}_a_clip.mkv", 500 + number, noise=1)
    fill_memory()
    shutil.copytree(HERE / "conf", work / "conf")
    os.chdir(work)
    kept = {cache: _encode(work, cache) for cache in CACHES}
    _train(work)
    for name in (*CACHES, "run"):
        # Without what each machine makes for itself.
        left = shutil.ignore_patterns("encoding", "*.log", "metrics.json")
        shutil.copytree(work / name, folder / name, ignore=left)
    for mapped in folder.glob("*/catalog/*.arrow"):
        mapped.unlink()
    for file in (folder / "run/.hydra").iterdir():
        file.write_text(file.read_text().replace(str(work), ROOT))
    (folder / "kept.json").write_text(json.dumps(kept, indent=1) + "\n")
    _write_batches(work / "world", folder / "batches.json")


def _encode(work: Path, cache: str) -> list[str]:
    """Encode all that some epochs need, and return the hashes of their batches."""
    with module(work, cache, "data.ledger=null", "prefetch=inline") as data:
        found = []
        for batch in data.batches(max_steps=STEPS):
            found.append(digest([batch]).hex()[:16])
            data.commit()
        return found


def _train(work: Path) -> None:
    """Run train.py in this process, whose memory holds the data."""
    sys.argv = [
        "train.py", "--config-dir", "conf", *overrides(work, "plain"),
        "~callbacks.loss", "~callbacks.samples", "~model",
        "+model={_target_:tests.compatibility.encoders.OneNumber}", "trainer.accelerator=cpu",
        f"trainer.max_steps={SAVED_AT}", f"callbacks.checkpoint.every_n_train_steps={SAVED_AT}",
        f"hydra.run.dir={work}/run",
    ]  # fmt: skip
    script = Path(factory.__file__).parent.parent / "train.py"
    runpy.run_path(str(script), run_name="__main__")


def _write_batches(world: Path, file: Path) -> None:
    write_world(world)
    os.chdir(world)
    file.write_text(json.dumps({name: hashes(world, name) for name in SCENARIOS}, indent=1) + "\n")
    states = {name: _state(world, name) for name in RESUMED}
    file.with_name("states.json").write_text(json.dumps(states, indent=1) + "\n")


def _state(world: Path, scenario: str) -> dict[str, Any]:
    """Return the data's state within a run, and the hashes of the batches after it."""
    with started(world, scenario) as data:
        committed(data, data.batches(max_steps=STEPS_BEFORE))
        state = data.state_dict()
        return {
            "state": state,
            "next": committed(data, data.batches(max_steps=STEPS_BEFORE + EVERY)),
        }


if __name__ == "__main__":
    target = Path(sys.argv[1]).absolute()
    if (target / "run").exists():
        sys.exit(f"{target} has fixtures; name another folder for those of this version")
    work = target.with_name(target.name + "-work")
    work.mkdir()
    main(target, work)
