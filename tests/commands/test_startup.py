"""How every command begins: Ctrl-C while it loads, and output to what knows only ASCII."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from factory.commands import startup
from tests.support.pictures import write_pictures

ROOT = Path(__file__).parent.parent.parent
COMMANDS = (
    "train.py", "scripts/plan.py", "scripts/precompute.py", "scripts/explain.py",
    "scripts/cache.py", "scripts/import_simpletuner.py", "scripts/demo_s3.py",
)  # fmt: skip
# A locale of ASCII, which Python would leave by itself were it not told to stay.
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def python(
    *arguments: str, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    environment = {k: v for k, v in os.environ.items() if k != "FACTORY_DEBUG"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, check=False, timeout=500,
        env={**environment, "PYTHONPATH": str(ROOT), **variables},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "reported"),
    [*((command, "KeyboardInterrupt") for command in COMMANDS), ("train.py", "ImportError")],
)
def test_an_interrupt_while_a_command_loads_is_one_line(
    command: str, reported: str, tmp_path: Path
) -> None:
    # The package that is loaded next is interrupted; some of them report that as their own error.
    program = f"""
import builtins, runpy, sys
plain = builtins.__import__
def interrupted(name, globals=None, *rest):
    module = (globals or {{}}).get("__name__", "")
    if module.startswith("factory.commands.") and module != "factory.commands.startup":
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise {reported}
    return plain(name, globals, *rest)
builtins.__import__ = interrupted
sys.argv = [{command!r}]
runpy.run_path({str(ROOT / command)!r}, run_name="__main__")
"""
    done = python("-c", program, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, b"interrupted\n")


def test_an_interrupt_in_a_process_group_is_told_by_its_first_process(tmp_path: Path) -> None:
    """Torch's hook holds back what hooks before it print, and an exit there loses it."""
    program = f"""
from factory.commands import startup
import torch.distributed
torch.distributed.init_process_group(
    "gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
raise KeyboardInterrupt("in step 3")
"""
    done = python("-c", program)
    assert (done.returncode, done.stderr) == (130, b"interrupted in step 3\n")
    (tmp_path / "store").unlink(missing_ok=True)
    done = python("-c", program, LOCAL_RANK="1")
    assert (done.returncode, done.stderr) == (130, b"")


@pytest.mark.parametrize(
    ("command", "status"),
    [("train.py --help", 141), ("train.py --cfg job", 141), ("train.py --info", 0),
     ("scripts/plan.py --help", 141), ("scripts/cache.py du --help", 0)],
)  # fmt: skip
def test_output_that_nobody_reads_brings_no_traceback(
    command: str, status: int, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does when it has seen enough
    name, *rest = command.split()
    done = subprocess.run(
        [sys.executable, str(ROOT / name), *rest], cwd=tmp_path, check=False, timeout=500,
        stdout=writer, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (status, b"")


def test_tables_of_any_name_reach_an_output_of_ascii(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data/photos", 5)
    (tmp_path / "data/photos/naïve ✓.png").write_bytes(b"no picture")
    (tmp_path / "data/photos/naïve ✓.txt").write_text("Ärger", encoding="utf-8")
    (tmp_path / "my/data").mkdir(parents=True)
    (tmp_path / "my/data/mine.yaml").write_text(
        "defaults: [base, backend@backends.photos: image, _self_]\n"
        "batch_size: 4\nresolution: 64\nalignment: 16\n"
    )
    done = python(
        str(ROOT / "scripts/plan.py"), "--config-dir", "my", "data=mine", cwd=tmp_path,
        DATA_DIR="data", **ASCII,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = done.stdout.decode("ascii")
    assert r"na\xefve \u2713.png" in told
    assert "####" in told
    assert "This can be trained" in told


@pytest.mark.parametrize("command", ["train.py", "scripts/cache.py", "scripts/explain.py"])
def test_commands_tell_their_help_in_ascii(command: str, tmp_path: Path) -> None:
    done = python(str(ROOT / command), "--help", cwd=tmp_path, **ASCII)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("ascii")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("given", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_torch_do_not_spin_in_any_command_unless_told_to(
    given: str | None, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    seen = []
    command = SimpleNamespace(main=lambda _: seen.append(os.environ["OMP_WAIT_POLICY"]))
    monkeypatch.setattr(startup.importlib, "import_module", lambda _: command)
    monkeypatch.setattr(startup, "speak", lambda: None)
    with pytest.raises(SystemExit):
        startup.run("plan")
    assert seen == [policy]
