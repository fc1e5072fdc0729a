"""One training run: what is done at its end, whatever went wrong before."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from factory import training
from factory.errors import StorageError


class Unclosable:
    """Data that cannot be closed, as with a ledger on a full disk."""

    def close(self) -> None:
        """Fail."""
        raise StorageError("no space left")


def test_a_run_is_reported_though_its_data_does_not_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    trainer = SimpleNamespace(fit=lambda *_, **__: done.append("fit"))
    for name, value in {
        "_quiet": lambda: None,
        "seed_everything": lambda *_, **__: None,
        "build": lambda *_: Unclosable(),
        "make": lambda *_, **__: trainer,
    }.items():
        monkeypatch.setattr(training, name, value)
    monkeypatch.setattr(training.RunReport, "finish", lambda _: done.append("report"))
    cfg = OmegaConf.create(
        {
            "paths": {"run_dir": "", "output_dir": str(tmp_path)},
            "ckpt_path": None, "seed": 1, "callbacks": {}, "trainer": {}, "model": {},
        }
    )  # fmt: skip
    with pytest.raises(StorageError, match="no space left"):
        training.train(cfg, [], tmp_path)
    assert done == ["fit", "report"]
