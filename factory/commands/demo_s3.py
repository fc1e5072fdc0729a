"""S3 server on loopback with the demo's data in a bucket, and how to point a run at it."""

import argparse
import shlex
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from factory.commands.startup import say
from factory.demo.demo_data import write_demo_data
from factory.demo.s3server import S3Server
from factory.errors import FactoryError

TRAIN = "python train.py data=multi storage=s3"
# Where the demo's configuration looks for its pictures, in a folder as in a bucket.
PREFIX = "demo"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Start a real S3 server on loopback with the demo data in a bucket. "
        "It runs, on this machine only, until Ctrl-C.",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="the demo data is written to DIR/demo and the server keeps its objects in DIR/s3, "
        "for the next time too (default: %(default)s)",
    )
    parser.add_argument(
        "--bucket",
        default="training-data",
        metavar="NAME",
        help="the bucket to create and fill (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def stop(number: int, frame: FrameType | None) -> None:
    """End on SIGTERM as on Ctrl-C, so that the server is stopped too."""
    del number, frame
    raise KeyboardInterrupt


def serve(directory: Path, bucket: str) -> None:
    """Write the demo data, serve it, print how to use it, and wait."""
    folder = directory / "demo"
    wrote = write_demo_data(folder)
    say(f"demo data      {folder} ({'written' if wrote else 'already there'})")
    with S3Server(directory / "s3", [bucket]) as server:
        say(f"S3 server      {server.endpoint_url} (SeaweedFS, this machine only)")
        count = server.upload(folder, bucket, PREFIX)
        say(f"uploaded       {count} files to s3://{bucket}/{PREFIX}/")
        say("\nIn another terminal, point a run at it:\n")
        for name, value in server.environment().items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        say(f"{TRAIN}\n\nCtrl-C stops the server; its objects stay in {directory / 's3'}.")
        try:
            threading.Event().wait()
        finally:
            say("\nstopping ...")


def main(arguments: Sequence[str]) -> int:
    """Run until Ctrl-C; return the exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, stop)
    try:
        serve(options.directory, options.bucket)
    except KeyboardInterrupt:
        say("stopped")
    except FactoryError as error:
        say(f"error: {error}")
        return 1
    return 0
