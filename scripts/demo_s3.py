"""S3 server on loopback with the demo's data. See `factory/commands/demo_s3.py`."""

from factory.commands.startup import run

if __name__ == "__main__":
    run("demo_s3")
