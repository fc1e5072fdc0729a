"""Does a cache get to a bucket of a real server and back, whatever stops it on the way?"""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.catalog.scan.facts_diff import Changes
from factory.commands import cache as command
from factory.storage import S3Storage
from factory.storage.local import LocalStorage
from tests.storage.conftest import BUCKET, READER
from tests.storage.proxy import Answer, Page, Proxy, honest, proxied
from tests.support.filled_cache import fill

SCRIPT = Path(__file__).parents[3] / "scripts" / "cache.py"
# Shards of the cache, of both stores.
SHARDS = 10


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a filled cache."""
    folder = tmp_path_factory.mktemp("filled")
    fill(folder)
    return folder


@pytest.fixture
def root(
    filled: Path, tmp_path: Path, weed_endpoint: str, credentials: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """A copy of it, where the config looks for the run's data, and a bucket in the environment."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SCRATCH_DIR", str(tmp_path / "scratch"))
    monkeypatch.setenv("DATA_BUCKET", BUCKET)
    monkeypatch.setenv("S3_ENDPOINT_URL", weed_endpoint)
    shutil.copytree(filled / "cache", tmp_path / "cache")
    return tmp_path


@pytest.fixture
def proxy(weed_endpoint: str) -> Iterator[Proxy]:
    """A proxy before the server."""
    yield from proxied(weed_endpoint)


def there(endpoint: str, prefix: str) -> dict[str, bytes]:
    """Return the shards and pieces of the index below a prefix of the bucket."""
    bucket = S3Storage(BUCKET, prefix, endpoint_url=endpoint)
    keys = [info.key for info in bucket.objects() if "/tensors/" in info.key]
    return {key: bucket.read(key) for key in keys}


def here(root: Path) -> dict[str, bytes]:
    """Return the same of a folder."""
    paths = [path for path in root.glob("cache/tensors/*/[si]*/*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_to_a_bucket_and_back(
    root: Path, weed_endpoint: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    to = ["--to", "storage=s3", "--to", "storage.prefix=back"]
    assert command.main(["push", *to, "--dry-run"]) == 0
    assert "would be copied" in capsys.readouterr().out
    assert command.main(["push", *to]) == 0
    assert there(weed_endpoint, "back") == here(root)
    assert command.main(["verify", "storage=s3", "storage.prefix=back"]) == 0
    capsys.readouterr()
    assert command.main(["push", "--to", f"s3://{BUCKET}/back"]) == 0
    assert f"nothing is missing there: {SHARDS} shards" in capsys.readouterr().out
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "new"))
    assert command.main(["pull", "--from", f"s3://{BUCKET}/back"]) == 0
    assert here(tmp_path / "new") == here(root)


def test_a_damaged_shard_is_replaced_at_either_end(
    root: Path, weed_endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = f"s3://{BUCKET}/mended"
    assert command.main(["push", "--to", other]) == 0
    sound = here(root)
    name = next(key for key in sound if "latents/shards" in key)
    damaged = sound[name][:-1] + bytes([sound[name][-1] ^ 4])
    (root / name).write_bytes(damaged)
    assert command.main(["verify"]) == 1
    assert "pull --verify" in capsys.readouterr().out
    assert command.main(["pull", "--from", other]) == 0  # of the right size, and not looked at
    assert (root / name).read_bytes() == damaged
    assert command.main(["pull", "--from", other, "--verify"]) == 0
    assert here(root) == sound
    bucket = S3Storage(BUCKET, "mended", endpoint_url=weed_endpoint)
    bucket.write(name, damaged)
    capsys.readouterr()
    assert command.main(["push", "--to", other, "--verify"]) == 0
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "latents" in each)
    assert line.split()[1] == line.split()[-2] == "1"  # shards, replaced
    assert there(weed_endpoint, "mended") == sound
    assert command.main(["push", "--to", other, "--verify"]) == 0
    assert f"{SHARDS} shards and their index, and all are sound" in capsys.readouterr().out


def test_a_killed_push_goes_on_where_it_was(
    root: Path, proxy: Proxy, weed_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    reached = threading.Event()

    def stall(page: Page) -> None:
        reached.set()
        page.server.over.wait(60)
        page.hang_up()

    proxy.script.key, proxy.script.methods = "/shards/", ("PUT",)
    proxy.script.first, proxy.script.always = [honest] * 4, stall
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.url)
    push = ["push", "--to", "storage=s3", "--to", "storage.prefix=killed"]
    process = subprocess.Popen([sys.executable, str(SCRIPT), *push], env=dict(os.environ))
    assert reached.wait(60)
    process.kill()
    process.wait()
    left = there(weed_endpoint, "killed")
    shards = {key for key in left if "/shards/" in key}
    assert len(shards) == 4
    # Whoever reads it meanwhile finds every row that is listed.
    assert command.main(["verify", "storage=s3", "storage.prefix=killed"]) == 0
    proxy.script.always = None
    proxy.requests.clear()
    assert command.main(push) == 0
    sent = [path for path in proxy.requests if "/shards/" in path and "list-type" not in path]
    assert len(sent) == SHARDS - 4
    assert not any(key in path for path in sent for key in shards)
    assert there(weed_endpoint, "killed") == here(root)


def refuse(page: Page) -> None:
    """Say that writing is forbidden."""
    body = b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"
    page.begin(Answer(403, [("Content-Type", "application/xml")], body))
    page.part(body)


def test_a_bucket_that_turns_read_only_midway(
    root: Path, proxy: Proxy, weed_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    allowed = [honest] * 6

    def until_then(page: Page) -> None:
        shard = "/shards/" in page.path
        if allowed and page.command == "PUT":
            (allowed.pop() if shard else honest)(page)
        else:
            refuse(page)

    proxy.script.always, proxy.script.methods = until_then, ("PUT", "DELETE")
    # The probe of the beginning is deleted again.
    proxy.script.first = [honest, honest]
    monkeypatch.setenv("S3_ENDPOINT_URL", proxy.url)
    push = ["push", "--to", "storage=s3", "--to", "storage.prefix=midway"]
    # A process of its own, whose claim to the cache nobody can take back.
    script = [sys.executable, str(SCRIPT), *push]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = done.stderr
    assert said.startswith("AccessDenied error: cannot write s3://photos/midway/cache/tensors/")
    assert "check storage.bucket='photos'" in said
    assert "shards were copied before and stay; the same command goes on there" in said
    assert len(said.splitlines()) == 2
    assert command.main(["verify", "storage=s3", "storage.prefix=midway"]) == 0
    monkeypatch.setenv("S3_ENDPOINT_URL", weed_endpoint)
    assert command.main(push) == 0
    assert there(weed_endpoint, "midway") == here(root)


@pytest.mark.parametrize(
    ("changed", "address", "message"),
    [
        ({}, "s3://nowhere", "there is no bucket 'nowhere' on"),
        ({"AWS_SECRET_ACCESS_KEY": "another"}, f"s3://{BUCKET}/x", "AWS_SECRET_ACCESS_KEY does no"),
        ({"AWS_ACCESS_KEY_ID": "another"}, f"s3://{BUCKET}/x", "does not know AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": READER}, f"s3://{BUCKET}/x", "the server refused it; check stor"),
        ({"AWS_ACCESS_KEY_ID": ""}, f"s3://{BUCKET}/x", "no credentials found; set AWS_ACCESS"),
    ],
)
def test_a_bucket_that_cannot_be_written_to_is_told_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], changed: dict[str, str], address: str, message: str,
) -> None:  # fmt: skip
    for name, value in changed.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    assert command.main(["push", "--to", address]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    said = shown.err.splitlines()
    assert message in said[0]
    assert said[1:] == [f"  --to {address} leads there"]


def test_a_reader_may_pull(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = f"s3://{BUCKET}/readable"
    assert command.main(["push", "--to", address]) == 0
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "reader"))
    assert command.main(["pull", "--from", address]) == 0
    assert here(tmp_path / "reader") == here(root)


def test_nothing_is_measured_again_on_another_machine(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines with caches of their own read the same bucket; the second one only lists it."""
    from factory import FactoryDataModule, ImageBackend, Workspace
    from factory.catalog.captions.sources import FilenameCaptions
    from tests.support.pictures import write_pictures

    write_pictures(tmp_path / "pictures", 5)
    bucket = S3Storage(BUCKET, "machines", endpoint_url=os.environ["S3_ENDPOINT_URL"])
    for path in (tmp_path / "pictures").glob("*.png"):
        bucket.write(f"demo/photos/{path.name}", path.read_bytes())

    def changes(machine: str) -> Changes:
        cache = Workspace(LocalStorage(str(tmp_path / machine)))
        backend = ImageBackend(
            name="photos", prefix="demo/photos", storage=bucket, caption=FilenameCaptions(),
            resolution=64, alignment=16,
        )  # fmt: skip
        data = FactoryDataModule([backend], cache=cache)
        try:
            data.prepare_data()
            return cache_changes(data)
        finally:
            data.close()

    def cache_changes(data: FactoryDataModule) -> Changes:
        (stage,) = (s for s in data.registry.telemetry.stages if s.name == "scan photos")
        return stage.counts["changes"]  # type: ignore[no-any-return]

    assert str(changes("first")) == "5 added"
    run = ["storage=s3", "storage.prefix=machines", "storage@cache=local"]
    first, second = (
        [*run, f"cache.storage.root={tmp_path / each}"] for each in ("first", "second")
    )
    shutil.copytree(root / "cache/tensors", tmp_path / "first/cache/tensors")
    team = f"s3://{BUCKET}/team"
    assert command.main(["push", *first, "--to", team]) == 0
    assert command.main(["pull", *second, "--from", team]) == 0
    assert str(changes("second")) == "5 unchanged"
