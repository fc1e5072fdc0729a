"""A whole config: read, written, composed, verified, and its local part scanned."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import factory
from factory.commands import import_simpletuner as command
from factory.config.build import make, verify
from factory.config.schema import SCHEMAS
from factory.importers.simpletuner.files import Import, write
from factory.importers.simpletuner.problem import ImportRefusedError
from tests.catalog.fakes import ENGINE
from tests.importers.simpletuner.building import converted, entry
from tests.support.pictures import write_pictures

ROOT = Path(__file__).parents[2]


def realistic(root: Path) -> list[dict[str, Any]]:
    """Return a config of every kind that is imported, as people write them."""
    size = {"resolution": 64, "resolution_type": "pixel_area", "train_batch_size": 4}
    return [*folders(root, size), *others(root, size)]


def folders(root: Path, size: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "id": "photos", "type": "local", "dataset_type": "image", **size,
            "instance_data_dir": str(root / "photos"), "caption_strategy": "textfile",
            "crop": True, "crop_aspect": "square", "crop_style": "center", "repeats": 2,
            "minimum_image_size": 32, "probability": 0.5, "conditioning_data": ["edges", "refs"],
            "text_embeds": "te", "image_embeds": "ve", "cache_dir_vae": "cache/{id}",
            "disabled": False, "slider_strength": None,
        },
        {
            "id": "edges", "type": "local", "dataset_type": "conditioning", **size,
            "conditioning_type": "controlnet", "instance_data_dir": str(root / "edges"),
            "caption_strategy": "textfile",
        },
        {
            "id": "refs", "type": "local", "dataset_type": "conditioning", **size,
            "conditioning_type": "reference_loose", "instance_data_dir": str(root / "edges"),
        },
        {"id": "held out", "type": "local", "dataset_type": "eval", **size,
         "instance_data_dir": str(root / "holdout"), "caption_strategy": "instanceprompt",
         "instance_prompt": "a photo of {id}, ${not} {env:a variable}"},
        {"id": "te", "type": "local", "dataset_type": "text_embeds", "default": True,
         "cache_dir": str(root / "te"), "caption_filter_list": ["ugly"]},
        {"id": "ve", "type": "local", "dataset_type": "image_embeds"},
        {"id": "off", "type": "local", "disabled": True},
    ]  # fmt: skip


def others(root: Path, size: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "id": "bucket/../set", "type": "aws", "aws_bucket_name": "pictures", **size,
            "aws_endpoint_url": "https://{env:S3_HOST}", "aws_access_key_id": "AKIA1",
            "aws_secret_access_key": "hush", "aws_data_prefix": "2024", "start_epoch": 2,
            "resolution": 0.25, "resolution_type": "area", "crop": True,
            "crop_aspect": "random", "crop_aspect_buckets": [0.75, 1.0, 1.5],
            "maximum_image_size": 4.0, "target_downsample_size": 1.0,
        },
        {
            "id": "web", "type": "csv", "csv_file": str(root / "urls.csv"), **size,
            "csv_cache_dir": str(root / "downloads"), "csv_caption_column": "caption",
        },
        {
            "id": "hub", "type": "huggingface", "dataset_name": "u/d", **size,
            "huggingface": {
                "caption_column": ["text"], "filter_func": {"quality_thresholds": {"aes": 5}},
                "composite_image_config": {"enabled": True, "image_count": 4, "select_index": 0},
            },
            "caption_shuffle": {"enable": True, "count": 2, "split_on": "comma"},
        },
        {
            "id": "table", "type": "local", "instance_data_dir": str(root / "photos"), **size,
            "metadata_backend": "parquet", "caption_strategy": "parquet",
            "parquet": {"path": str(root / "meta.parquet"), "filename_column": "file_name",
                        "caption_column": "caption", "identifier_includes_extension": True},
        },
        {
            "id": "clips", "type": "local", "dataset_type": "video", **size,
            "instance_data_dir": str(root / "clips"), "video": {"num_frames": 9},
        },
    ]  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for folder in ("photos", "edges", "holdout", "clips"):
        write_pictures(tmp_path / folder, 6)
    path = tmp_path / "multidatabackend.json"
    path.write_text(json.dumps(realistic(tmp_path)))
    return path


def run(*arguments: object) -> int:
    return int(command.run(command.parse([str(argument) for argument in arguments])))


def test_a_realistic_config_is_composed_verified_and_scanned(
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = config.parent / "myconf"
    assert run(config, "--out", out, "--name", "old", "--gpus", 2) == 0
    said = capsys.readouterr().out
    assert f"python train.py --config-dir {out} data=old" in said
    assert "export AWS_SECRET_ACCESS_KEY=..." in said
    written = "".join(path.read_text() for path in out.rglob("*") if path.is_file())
    assert "hush" not in said + written
    assert "AKIA1" not in said + written

    monkeypatch.setenv("S3_HOST", "s3.example")
    cfg = factory.compose(["data=old"], config_dir=out)
    verify(cfg)
    data = cfg.data
    assert set(data.backends) == {
        "photos", "edges", "refs", "bucket-set", "web", "hub", "table", "clips", "held-out", "te",
        "ve",
    }  # fmt: skip
    assert (data.batch_size, data.resolution) == (8, 64)
    assert cfg.sampling.weighting._target_.endswith("AutoWeighting")
    assert data.backends["bucket-set"].storage.endpoint_url == "https://s3.example"
    assert data.backends["bucket-set"].window.start_epoch == 2
    assert (data.backends.edges.source, data.backends.edges.crop) == ("photos", None)
    assert (data.backends.refs.type, data.backends.refs.resolution) == ("reference_loose", 64)
    assert data.backends.refs.crop.style == "random"
    assert data.conditioning_sampling == "random"
    assert data.backends["held-out"].caption.prompt == (
        "a photo of held out, ${not} {env:a variable}"
    )
    assert data.backends.table.prefix == "photos"
    assert data.backends.table.metadata.path == "meta.parquet"
    photos = make(data.backends.photos, "data.backends.photos")
    facts = photos.scan(None, ENGINE)
    catalog = photos.catalog(facts, seed=1)
    assert len(catalog) == 6
    assert [bucket.name for bucket in catalog.decisions.buckets] == ["64x64"]


def test_the_same_config_gives_the_same_bytes(config: Path) -> None:
    texts = []
    for name in ("one", "two"):
        out = config.parent / name / "conf"
        assert run(config, "--out", out) == 0
        files = sorted(path for path in out.rglob("*") if path.is_file())
        texts.append([(p.name, p.read_text().replace(str(out), "OUT")) for p in files])
    assert texts[0] == texts[1]
    assert {"multidatabackend.yaml", "multidatabackend.IMPORT.md", "web.yaml"} <= set(
        dict(texts[0])
    )


def test_only_what_is_no_default_is_written(tmp_path: Path) -> None:
    made = Import("old", "multi.json", converted(entry(id="people", crop_style="center")))
    write(made, tmp_path)
    option = yaml.safe_load((tmp_path / "data" / "old.yaml").read_text())
    assert list(option) == ["defaults"]
    dataset = yaml.safe_load((tmp_path / "data" / "dataset" / "people.yaml").read_text())
    dropout = {"caption": {"dropout": 0.1}} if has_dropout() else {}
    assert dataset["people"] == {"storage": {"root": "/data/d"}, "prefix": "", **dropout}


def has_dropout() -> bool:
    return "dropout" in SCHEMAS["caption/filename"].__dataclass_fields__  # type: ignore[attr-defined]


def test_nothing_is_replaced_unless_asked(config: Path) -> None:
    out = config.parent / "myconf"
    theirs = out / "data" / "dataset" / "web.yaml"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(ImportRefusedError, match=r"web\.yaml: there already; --force"):
        run(config, "--out", out)
    assert [path for path in out.rglob("*") if path.is_file()] == [theirs]
    assert run(config, "--out", out, "--force") == 0
    assert theirs.read_text() != "mine"


def test_no_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside.yaml"
    outside.write_text("theirs")
    link = tmp_path / "conf" / "data" / "old.yaml"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    write(Import("old", "m.json", converted(entry())), tmp_path / "conf", force=True)
    assert outside.read_text() == "theirs"
    assert not link.is_symlink()


def test_ids_never_leave_the_folder_nor_break_a_comment(tmp_path: Path) -> None:
    ids = ["../../../etc/x", "/abs", "a\nevil: true", "..", "c:\\d"]
    made = Import("old", "m\n.json", converted(*(entry(id=name, x=1) for name in ids)))
    paths = write(made, tmp_path / "a" / "conf")
    assert all(path.resolve().is_relative_to(tmp_path / "a" / "conf") for path in paths)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(paths)
    for path in paths:
        if path.suffix == ".yaml":
            assert "evil" not in (yaml.safe_load(path.read_text()) or {})
    factory.compose(["data=old"], config_dir=tmp_path / "a" / "conf")


def test_datasets_named_like_the_projects_own_are_the_imported_ones(tmp_path: Path) -> None:
    given = [entry(id="photos"), entry(id="on"), entry(id="NULL"), entry(id="1e3")]
    made = Import("mine", "m.json", converted(*given))
    assert "this project has an option data/dataset=photos, so yours is mine-photos" in made.remarks
    write(made, tmp_path)
    cfg = factory.compose(["data=mine"], config_dir=tmp_path)
    assert set(cfg.data.backends) == {"photos", "on", "NULL", "set-1e3"}
    assert cfg.data.backends.photos.storage.root == "/data/d"
    assert cfg.data.demo is False


def test_a_config_with_nothing_to_train_on_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "multi.json"
    path.write_text(json.dumps([entry(dataset_type="audio")]))
    assert run(path, "--out", tmp_path / "conf", "--no-path-checks") == 1
    told = capsys.readouterr()
    assert "Nothing written" in told.err
    assert "there is no audio here" in told.out
    assert not (tmp_path / "conf").exists()


def test_arguments_reach_the_command(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = config.parent / "config.json"
    args.write_text(json.dumps({"--gradient_accumulation_steps": 4, "--seed": 9}))
    out = config.parent / "my conf"
    assert run(config, "--out", out, "--args", args, "--all") == 0
    said = capsys.readouterr().out
    assert f"--config-dir '{out}' data=multidatabackend trainer.accumulate_grad_batches=4" in said
    assert "What came of every key" in said
    assert factory.compose(["data=multidatabackend"], config_dir=out).data.seed == 9


def test_the_door_ends_with_advice_and_brings_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "multi.json"
    path.write_text('[{"id": "a", "type": "ftp"}, {"id": "b", "type": "local"}]')
    door = ROOT / "scripts" / "import_simpletuner.py"
    code = (
        f"import runpy, sys; sys.argv = ['door', {str(path)!r}]\n"
        f"try: runpy.run_path({str(door)!r}, run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert ended.returncode == 1
    assert ended.stdout.strip() == "False"
    assert "Import refused: 2 problems" in ended.stderr
    assert "Traceback" not in ended.stderr
