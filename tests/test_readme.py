"""The README's examples run as they stand, and its map names what is there."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch import LightningModule

from factory import Batch
from factory.config.compose import compose
from tests.scenarios.training.building import Recorder
from tests.support.pictures import write_pictures

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:.*does not have a `val_dataloader`",
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:The number of training batches",
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


class MyModule(Recorder):
    """What a reader would bring."""


def run_block(code: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> LightningModule:
    """Run an example with its paths and its number of steps made small."""
    monkeypatch.chdir(root)
    made: list[MyModule] = []

    def module() -> MyModule:
        made.append(MyModule())
        return made[0]

    code = code.replace("/path/to/pictures", str(root)).replace("max_steps=1000", "max_steps=2")
    code = code.replace("Trainer(", "Trainer(logger=False, enable_progress_bar=False, ")
    code = code.replace("max_steps=2)", "max_steps=2, accelerator='cpu', devices=1)")
    names = {"MyModule": module}
    exec(compile(code, "README.md", "exec"), names)
    names["data"].close()  # type: ignore[attr-defined]
    return made[0]


def test_plain_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "photos", 20)
    code = next(block for block in blocks("python") if "ImageBackend(" in block)
    model = run_block(code, tmp_path, monkeypatch)
    assert len(model.seen) == 2  # type: ignore[arg-type]


def test_composed_example_with_the_yaml_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "people" / "photos", 33, sizes=[(600, 600)])
    write_pictures(tmp_path / "art", 33, sizes=[(600, 600)], captions=False)
    option = next(block for block in blocks("yaml") if "backends.photos" in block)
    (tmp_path / "myconf" / "data").mkdir(parents=True)
    (tmp_path / "myconf" / "data" / "mine.yaml").write_text(option.replace("1024", "64"))
    code = next(block for block in blocks("python") if "factory.compose" in block)
    model = run_block(code, tmp_path, monkeypatch)
    assert len(model.seen) == 2  # type: ignore[arg-type]


class Loss(torch.nn.Module):
    """A model of one number, whose loss is that number."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the loss of a batch."""
        assert len(batch) > 0
        return self.weight * 1.0


def test_loops_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "people" / "photos", 33, sizes=[(600, 600)])
    write_pictures(tmp_path / "art", 33, sizes=[(600, 600)], captions=False)
    option = next(block for block in blocks("yaml") if "backends.photos" in block)
    (tmp_path / "myconf" / "data").mkdir(parents=True)
    (tmp_path / "myconf" / "data" / "mine.yaml").write_text(option.replace("1024", "64"))
    monkeypatch.chdir(tmp_path)
    loop, fabric = (block for block in blocks("python") if "data.commit()" in block)
    build = f"['data=mine', 'storage.root={tmp_path}', 'data.batch_size=8']"
    loop = loop.replace('["data=mine"]', build).replace("torch.distributed.init_", "# ")
    loop = loop.replace("max_steps=1000", "max_steps=101")
    model = Loss()
    names = {
        "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "device": "cpu", "resuming": False, "Fabric": Fabric,
    }  # fmt: skip
    exec(compile(loop, "README.md", "exec"), names)
    saved = torch.load("last.pt")["data"]
    assert names["data"].plan.steps_before(saved["epoch"]) + saved["step"] == 100  # type: ignore[attr-defined]
    begin = loop.partition("with data:")[0].replace("resuming", "True")
    fabric = fabric.replace("devices=2", "accelerator='cpu', devices=1").replace("range(10)", "[0]")
    exec(compile(begin + fabric, "README.md", "exec"), names)
    epoch, step = names["data"].committed  # type: ignore[attr-defined]
    assert step == names["data"].plan.steps(epoch)  # type: ignore[attr-defined]


def test_every_folder_of_the_map_is_there_and_the_reverse() -> None:
    section = README.partition("### The map")[2].partition("### Adding")[0]
    named = set(re.findall(r"^  (\w+)/ ", section, flags=re.MULTILINE))
    named |= {name for name in ("schema", "plugins") if f"{name}/" in section}
    folders = {path.parent.name for path in (ROOT / "factory").glob("*/__init__.py")}
    assert folders <= named
    assert {name for name in named if (ROOT / "factory" / name).is_dir()} == folders


@pytest.mark.parametrize(
    "line",
    [
        line
        for block in blocks("bash")
        for line in block.replace("\\\n", " ").splitlines()
        if "train.py" in line
    ],
)
def test_commands_compose(line: str) -> None:
    command = shlex.split(line.split("train.py", 1)[1], comments=True)
    if "--help" in command or "--config-dir" in command or "data=mine" in command:
        return  # --help is tested end to end; the other two need the YAML example
    for choice in ("uniform", "auto"):
        overrides = [word.replace("uniform,auto", choice) for word in command]
        compose([word for word in overrides if not word.startswith("-") and word != "job"])
