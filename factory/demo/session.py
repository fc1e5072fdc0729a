"""Surroundings of a demo run: its pictures, and servers that last as long as the run."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig, OmegaConf

from factory.demo.demo_data import write_demo_data
from factory.demo.http_server import HttpServer
from factory.demo.s3server import S3Server
from factory.errors import StorageError

logger = logging.getLogger("factory")

# Where a user says which S3 to use; with any of these the demo starts no server of its own.
S3_SETTINGS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "S3_ENDPOINT_URL",
    "DATA_BUCKET",
)
# What a server of its own sets, as far as a config's check looks at it.
S3_PROMISED = ("DATA_BUCKET", "S3_ENDPOINT_URL")


@contextmanager
def demo_session(cfg: DictConfig) -> Iterator[None]:
    """Write the demo's pictures and serve them while the `with` block runs.

    Does nothing unless `data.demo` is set. Servers listen on loopback only; the environment
    variables that point at them are taken back at the end.
    """
    if not cfg.data.demo:
        yield
        return
    folder = Path(cfg.paths.data_dir) / "demo"
    with ExitStack() as stack:
        try:
            written = write_demo_data(folder)
        except OSError as error:
            raise StorageError(
                f"the demo's pictures cannot be written to {folder}: {error.strerror or error}; "
                "free some space or allow it there, or set paths.data_dir=FOLDER (DATA_DIR)"
            ) from error
        if written:
            logger.info("wrote the demo's pictures to %s", folder)
        if _reads_urls(cfg):
            web = stack.enter_context(HttpServer(folder / "web"))
            stack.enter_context(_environment({"DEMO_URL": web.url}))
        if wants_s3_server(cfg):
            place = stack.enter_context(TemporaryDirectory(prefix="factory-s3-"))
            server = stack.enter_context(S3Server(Path(place)))
            bucket = server.environment()["DATA_BUCKET"]
            server.upload(folder, bucket, "demo")
            stack.enter_context(_environment(server.environment()))
            logger.info(
                "no S3 is configured: using one of the demo's own at %s for this run; for yours "
                "set DATA_BUCKET, S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                server.endpoint_url,
            )
        yield


@contextmanager
def promised(cfg: DictConfig) -> Iterator[None]:
    """Set what a session will set, so that a config can be checked before there is one."""
    names = S3_PROMISED if wants_s3_server(cfg) else ()
    with _environment(dict.fromkeys(names, "http://127.0.0.1")):
        yield


def wants_s3_server(cfg: DictConfig) -> bool:
    """Tell whether a run of the demo's data reads from S3 and nothing about S3 is configured."""
    if not cfg.data.demo or not _is_s3(cfg):
        return False
    storage = cfg.storage
    if storage.bucket or storage.endpoint_url or any(os.environ.get(n) for n in S3_SETTINGS):
        return False
    return not any(path.is_file() for path in _sdk_files())


def _sdk_files() -> list[Path]:
    home = Path.home() / ".aws"
    return [
        Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", home / "credentials")),
        Path(os.environ.get("AWS_CONFIG_FILE", home / "config")),
    ]


def _is_s3(cfg: DictConfig) -> bool:
    return str(OmegaConf.select(cfg, "storage._target_")).endswith(".S3Storage")


def _reads_urls(cfg: DictConfig) -> bool:
    targets = [OmegaConf.select(node, "storage._target_") for node in cfg.data.backends.values()]
    return any(str(target).endswith(".UrlListStorage") for target in targets)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
