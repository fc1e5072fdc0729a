"""Train on any mix of backends: `python train.py data=multi storage=s3`."""

from factory.commands.startup import run

if __name__ == "__main__":
    run("train")
