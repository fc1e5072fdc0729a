"""A file that is cut while a reader has it open gives an error of ours, and never a signal.

Each reader runs in a process of its own, which says what came of the second reading.
"""

import json
import subprocess
import sys

import pytest

from tests.fuzz.harness import ROOT

pytestmark = pytest.mark.xdist_group("cut")  # the readers run once

# What reads `folder` once, has `cut` make files shorter, and reads it again.
BEGIN = """
import os, sys
from pathlib import Path
import numpy as np
import torch
from factory.errors import FactoryError
from factory.storage import checksummed_arrow
from tests.fuzz import formats

folder = Path(sys.argv[1])
if sys.argv[2] == "mapped":
    from factory.cache.index import local_runs
    from factory.cache.tiers import mapped_file
    for module in (checksummed_arrow, mapped_file, local_runs):
        module.READ_WHOLE = 100

def cut(pattern):
    files = [file for file in folder.glob(pattern) if file.is_file()]
    assert files, pattern
    for file in files:
        os.truncate(file, int(sys.argv[3]))

def told(read):
    try:
        print("read", read())
    except FactoryError as error:
        print("refused", type(error).__name__, error)
"""
CATALOG = """
formats.write_catalog(folder)
facts = formats._shelf(folder).load()
def read():
    facts.column("width")
    return len(facts.texts("key", np.arange(9))), facts.take("width", [3]), facts.text(5)
read()
cut("mapped/*.arrow")
told(read)
"""
GATHER = """
formats.write_cache(folder)
store = formats._store(folder)
store.open()
store.gather(formats._KEYS)
cut("cache/images/shards/*")
told(lambda: store.gather(formats._KEYS).keys())
"""
READY = """
from factory.cache.gather.gather_plan import GatherPlan
formats.write_cache(folder)
store = formats._store(folder)
store.open()
store.gather(formats._KEYS)
refs = store.snapshot().index.find(formats._KEYS)
[located] = GatherPlan(store, refs).split([len(formats._KEYS)])
assert located.ready
located.read()
cut("cache/images/shards/*")
told(lambda: located.read().keys())
"""
INDEX = """
formats.write_cache(folder)
store = formats._store(folder)
store.open()
store.gather(formats._KEYS[:5])
cut("cache/images/index/*")
told(lambda: store.gather(formats._KEYS).keys())
told(lambda: (store.refresh(), store.gather(formats._KEYS).keys()))
"""
TABLE = """
from factory.cache.index import snapshot
snapshot.SMALL = 10
formats.write_cache(folder)
store = formats._store(folder)
store.open()
store.gather(formats._KEYS)
cut("cache/images/merged/*.safetensors")
told(lambda: store.gather(formats._KEYS).keys())
"""
TAR = """
formats.write_indexed_tar(folder)
storage = formats._tar(folder)
keys = [info.key for info in storage.objects()]
cut("index/**/*.arrow")
told(lambda: storage.read(keys[3]))
cut("a.tar")
told(lambda: storage.read(keys[4]))
"""
SAVED = """
formats.write_saved(folder)
storage = formats.HuggingFaceStorage(str(folder / "set"))
keys = [info.key for info in storage.objects()]
stream = formats.RowStream(storage, ["caption"])
rows = stream.rows(0)
next(rows)
cut("set/*.arrow")
told(lambda: storage.read(keys[3]))
told(lambda: list(storage.objects()))
told(lambda: storage.rows(["caption"]))
told(lambda: list(rows))
told(lambda: list(stream.rows(0)))
"""
LEDGER = """
from factory.ledger.reader import ledger_files, read_file
formats.write_ledger(folder)
[file] = ledger_files(folder)
records = read_file(file)
next(records)
cut("*.arrows")
told(lambda: len(list(records)))
"""
# What must be refused at once; the others may also give what was read before the cut.
REFUSED = {"CATALOG": CATALOG, "GATHER": GATHER, "READY": READY, "TABLE": TABLE, "SAVED": SAVED}
EITHER = {"INDEX": INDEX, "TAR": TAR, "LEDGER": LEDGER}
SIZES = (0, 1000)


# One process imports all that readers need, and forks for each of them.
FORKS = f"""
import json, os, sys, traceback
from tests.fuzz import formats

for name, script, *arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    if pid := os.fork():
        print(json.dumps([name, "ended", os.waitpid(pid, 0)[1]]), flush=True)
        continue
    try:
        said = lambda *words: os.write(1, (json.dumps([name, *map(str, words)]) + "\\n").encode())
        exec({BEGIN!r} + script, {{"print": said}})
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Run every reader; return the first word it says of each reading, by its name."""
    cases = [
        *((f"{name}-{size}", script, "mapped", size) for name, script in REFUSED.items()
          for size in SIZES),
        *((name, script, "read whole", 0) for name, script in EITHER.items()),
        ("small", CATALOG, "read whole", 0),
    ]  # fmt: skip
    given = [
        (name, script, str(tmp_path_factory.mktemp(name)), how, str(size))
        for name, script, how, size in cases
    ]
    done = subprocess.run(
        [sys.executable, "-c", FORKS, json.dumps(given)],
        cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    found: dict[str, list[str]] = {name: [] for name, *_ in cases}
    for name, word, *rest in map(json.loads, done.stdout.splitlines()):
        if word == "ended":
            assert rest == [0], (name, rest, done.stderr[-3000:])
        else:
            found[name].append(word)
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", REFUSED)
def test_a_mapped_file_that_was_cut_is_refused(
    name: str, size: int, outcomes: dict[str, list[str]]
) -> None:
    assert set(outcomes[f"{name}-{size}"]) == {"refused"}


@pytest.mark.parametrize("name", EITHER)
def test_a_file_that_was_cut_ends_no_process(name: str, outcomes: dict[str, list[str]]) -> None:
    assert outcomes[name]
    assert set(outcomes[name]) <= {"refused", "read"}


def test_a_small_catalog_is_not_mapped(outcomes: dict[str, list[str]]) -> None:
    assert outcomes["small"] == ["read"]
