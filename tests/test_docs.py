"""Examples of README and docs run as they stand; links resolve; the map names what is there."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
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
DOCS = ROOT / "docs"

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:.*does not have a `val_dataloader`",
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:The number of training batches",
)


def blocks(language: str, page: str = "README.md") -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def write_option(root: Path, page: str = "docs/getting-started.md") -> None:
    """Write the data option that a page shows, with its pictures made small."""
    option = next(block for block in blocks("yaml", page) if "backends.photos" in block)
    (root / "myconf" / "data").mkdir(parents=True)
    (root / "myconf" / "data" / "mine.yaml").write_text(option.replace("1024", "64"))


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
    exec(compile(code, "example", "exec"), names)
    names["data"].close()  # type: ignore[attr-defined]
    return made[0]


def test_plain_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "photos", 20)
    examples = blocks("python", "docs/training-loops.md")
    code = next(block for block in examples if "ImageBackend(" in block)
    model = run_block(code, tmp_path, monkeypatch)
    assert len(model.seen) == 2  # type: ignore[arg-type]


def test_composed_example_with_the_yaml_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "people" / "photos", 33, sizes=[(600, 600)])
    write_option(tmp_path, "README.md")
    (code,) = blocks("python")
    assert code in (DOCS / "training-loops.md").read_text()
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
    write_option(tmp_path)
    monkeypatch.chdir(tmp_path)
    examples = blocks("python", "docs/training-loops.md")
    loop, fabric = (block for block in examples if "data.commit()" in block)
    build = f"['data=mine', 'storage.root={tmp_path}', 'data.batch_size=8']"
    loop = loop.replace('["data=mine"]', build).replace("torch.distributed.init_", "# ")
    loop = loop.replace("max_steps=1000", "max_steps=101")
    model = Loss()
    names = {
        "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "device": "cpu", "resuming": False, "Fabric": Fabric,
    }  # fmt: skip
    exec(compile(loop, "loop", "exec"), names)
    saved = torch.load("last.pt")["data"]
    assert names["data"].plan.steps_before(saved["epoch"]) + saved["step"] == 100  # type: ignore[attr-defined]
    begin = loop.partition("with data:")[0].replace("resuming", "True")
    fabric = fabric.replace("devices=2", "accelerator='cpu', devices=1").replace("range(10)", "[0]")
    exec(compile(begin + fabric, "fabric", "exec"), names)
    epoch, step = names["data"].committed  # type: ignore[attr-defined]
    assert step == names["data"].plan.steps(epoch)  # type: ignore[attr-defined]


def test_every_folder_of_the_map_is_there_and_the_reverse() -> None:
    page = (DOCS / "architecture.md").read_text()
    tree = page.partition("## Rooms and floors")[2].partition("```text")[2].partition("```")[0]
    named = set(re.findall(r"(\w+)/", tree))
    missing = {
        str(path.parent.relative_to(ROOT))
        for path in (ROOT / "factory").rglob("*/__init__.py")
        if path.parent.name not in named
    }
    assert not missing
    rooms = re.findall(r"^  (\w+)/", tree.partition("tests/")[0], flags=re.MULTILINE)
    assert not [name for name in rooms if not (ROOT / "factory" / name).is_dir()]


def test_modules_that_the_six_ways_pass_are_there() -> None:
    ways = (DOCS / "architecture.md").read_text().partition("## Six ways")[2]
    passed = re.findall(r"`((?:\w+/)+|(?:\w+/)*\w+\.py)`", ways)
    assert len(passed) > 50
    assert not [path for path in passed if not (ROOT / "factory" / path).exists()]


# In a message of the table: what is filled in, and what stands for it.
FILLED_IN = re.compile(r"…|\b[NMK]\b|\d[\d.]*|[(;,]|SIGKILL|did you mean|their plans|rank \d")


def test_messages_of_troubleshooting_are_in_the_code() -> None:
    texts = [
        node.value
        for folder in ("factory", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    said = "\n".join(texts)
    page = (DOCS / "troubleshooting.md").read_text().partition("| it says |")[2]
    messages = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (.*?) \| ", page, re.MULTILINE)))
    parts = [max(FILLED_IN.split(message), key=len).strip() for message in messages]
    assert len(parts) >= 30
    assert not [part for part in parts if part not in said]


OVERRIDE = re.compile(r"[+~]?[\w./@]+=|~")


def overrides_of(line: str) -> list[str]:
    """Return the overrides in a command, without its options and what belongs to those."""
    words = shlex.split(line, comments=True)
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if OVERRIDE.match(word) and not before.startswith("--")
    ]


def commands() -> Iterator[str]:
    """Yield the overrides of every command that composes a config."""
    for page in ["README.md", *(f"docs/{path.name}" for path in sorted(DOCS.glob("*.md")))]:
        for block in blocks("bash", page):
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"python (train|scripts/(plan|precompute|cache))\.py", line):
                    overrides = overrides_of(line)
                    if "data=mine" not in overrides:  # needs the YAML example, tested above
                        yield shlex.join(overrides)


@pytest.mark.parametrize("overrides", sorted(set(commands())))
def test_commands_compose(overrides: str) -> None:
    for choice in sorted({"uniform", "auto"} if "uniform,auto" in overrides else {""}):
        compose(shlex.split(overrides.replace("uniform,auto", choice)))


# What rows of the tables take for granted: backends of these names, and encoders.
GIVEN = (
    "data=multi",
    "+data/backend@data.backends.art=image",
    "+data/backend@data.backends.more=image",
    "+data/backend@data.backends.less=image",
    "+data/backend@data.backends.edges=conditioning",
    "data.backends.edges.source=photos",
)


def settings() -> Iterator[str]:
    """Yield what the tables of settings tell to say."""
    table = re.compile(r"^\| to.* \| say \|\n\|[-|]*\n((?:\|.*\n)*)", re.MULTILINE)
    for path in sorted(DOCS.glob("*.md")):
        tables = table.findall(path.read_text())
        for row in "".join(tables).splitlines():
            for code in re.findall(r"`([^`]+)`", row.partition(" | ")[2]):
                if OVERRIDE.match(shlex.split(code)[0]):
                    yield code


def test_tables_of_settings_are_found() -> None:
    assert len(list(settings())) > 60


@pytest.mark.long
@pytest.mark.parametrize("code", sorted(set(settings())))
def test_settings_compose(code: str) -> None:
    words = shlex.split(code.replace("…", "model"))
    given = GIVEN
    if any(word.startswith("encoder.text.") for word in words) and "encoder/text" not in code:
        parts = "clip_and_t5" if "offload" in code else "transformers"
        given = (*GIVEN, f"encoder/text={parts}")
    if "extensionless" in code:
        table = "data.backends.photos.metadata.path=table.parquet"
        given = (*GIVEN, "metadata@data.backends.photos=parquet", table)
    if code.startswith("data=") or "data/dataset" in code:
        given = ()
    compose([*given, *words])


PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    files = [target for target in targets if not target.startswith(("http:", "https:"))]
    assert not [target for target in files if not (page.parent / target).is_file()]


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "zensical.toml").read_text()
    assert not [path.name for path in DOCS.glob("*.md") if f'"{path.name}"' not in navigation]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    built = subprocess.run(
        command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "site" / "index.html").is_file()
