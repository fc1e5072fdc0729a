"""A file that is cut while a reader has it open gives an error of ours, and never a signal.

Each reader runs in a process of its own, which prints what came of the second reading.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.harness import ROOT

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


def outcomes(script: str, folder: Path, how: str, size: int) -> list[str]:
    """Run a reader; return the first word it prints of each reading."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script, str(folder), how, str(size)],
        cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    return [line.split()[0] for line in done.stdout.splitlines() if line.strip()]


@pytest.mark.parametrize("size", [0, 1000])
@pytest.mark.parametrize("name", REFUSED)
def test_a_mapped_file_that_was_cut_is_refused(name: str, size: int, tmp_path: Path) -> None:
    found = outcomes(REFUSED[name], tmp_path, "mapped", size)
    assert found
    assert set(found) == {"refused"}


@pytest.mark.parametrize("name", EITHER)
def test_a_file_that_was_cut_ends_no_process(name: str, tmp_path: Path) -> None:
    found = outcomes(EITHER[name], tmp_path, "read whole", 0)
    assert found
    assert set(found) <= {"refused", "read"}


def test_a_small_catalog_is_not_mapped(tmp_path: Path) -> None:
    assert outcomes(CATALOG, tmp_path, "read whole", 0) == ["read"]
