"""What a config says and nothing would read is refused, all at once, before any I/O."""

import sys

import pytest

import factory
from factory.config.build import verify
from factory.config.signatures import arguments_of
from factory.errors import ConfigError


def refused(*overrides: str) -> list[str]:
    given = [*overrides, "paths.data_dir=/nowhere"]
    with pytest.raises(ConfigError) as caught:
        verify(factory.compose(given), given)
    return caught.value.problems


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+foo=1", "the config has no option 'foo'"),
        ("+traner.max_steps=3", "did you mean 'trainer'?"),
        ("+metrics.mine._target_=my.Metric", "the config has no option 'metrics'"),
        ("+paths.dat_dir=x", "did you mean 'data_dir'?"),
        ("+encoder.foo=1", "options are image, text, vision"),
        ("+encoder.image.chanels=4", "did you mean 'channels'?"),
        ("+trainer.max_step=3", "did you mean 'max_steps'?"),
        ("+model.foo=1", "RectifiedFlow has no argument 'foo'"),
        ("+callbacks.foo=1", "callbacks.foo must be a mapping with a _target_, got 1"),
        ("+callbacks.mine.x=1", "got {'x': 1}"),
        ("+callbacks.checkpoint.every_n_step=1", "did you mean 'every_n_train_steps'?"),
        ("callbacks.samples=null", "~callbacks.samples"),
        ("+sampling.weighting.foo=1", "it takes none"),
        ("+hydra.foo=1", "hydra has no option 'foo'"),
        ("+hydra.run.dri=x", "did you mean 'dir'?"),
        ("+data.backends.photso.repeats=2", "did you mean data.backends.photos?"),
        ("data.aspect_sizes={0.99:[96,96]}", "labels are 0.6, 1, 1.67"),
        ("data.caption.filters=[s/a/b/x]", "'x' is none of g and i"),
    ],
)
def test_what_nothing_reads_is_refused(override: str, said: str) -> None:
    (problem,) = refused(override)
    assert said in problem


def test_all_at_once() -> None:
    found = refused("+foo=1", "+encoder.foo=1", "+trainer.foo=1", "data.batch_size=0")
    assert len(found) == 4


@pytest.mark.parametrize(
    "group", ["storage", "cache", "metadata", "sampling", "prefetch", "engine", "data"]
)
def test_a_group_that_is_taken_away_is_named(group: str) -> None:
    (problem,) = refused(f"~{group}")
    assert problem.startswith(f"{group} is taken away")


@pytest.mark.parametrize(
    "overrides",
    [
        ["+place=/data", "paths.scratch_dir=${place}/x"],
        ["+paths.mine=/data", "paths.scratch_dir=${paths.mine}/x"],
        ["+trainer.min_steps=3", "+callbacks.checkpoint.monitor=loss", "~callbacks.samples"],
        ["encoder/image=none", "+encoder.image={_target_:my_package.Mine,dim:7}"],
        ["encoder/text=clip_and_t5", "encoder.text.parts.clip.model=a/b"],
        [
            "encoder/text=transformers",
            "encoder.text.model=a",
            "+encoder.text.tokenizer_options.x=1",
        ],
        ["data.aspect_sizes={0.6:[96,160],1:[96,96]}"],
        ["data/crop=preserve", "data.aspect_sizes={0.75:[96,128]}"],
        ["data=multi", "sampling=auto", "+hydra.job.env_set.X=1"],
    ],
)
def test_what_is_read_is_accepted(overrides: list[str]) -> None:
    given = [*overrides, "paths.data_dir=/nowhere"]
    verify(factory.compose(given), given)


def test_arguments_are_read_without_importing() -> None:
    found = arguments_of("lightning.pytorch.Trainer")
    assert found is not None
    assert {"max_steps", "callbacks"} <= found
    assert "self" not in found
    assert arguments_of("no_such_package.Thing") is None
    assert arguments_of("factory.encoder.dct.NoSuchClass") is None
    assert arguments_of("plain") is None


@pytest.mark.parametrize(
    "target",
    [
        "factory.encoder.transformers_text.TransformersTextEncoder",
        "factory.encoder.several_texts.SeveralTexts",
        "factory.encoder.autoencoder.DiffusersVideoEncoder",
        "factory.demo.model.RectifiedFlow",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.ModelCheckpoint",
    ],
)
def test_arguments_are_those_of_the_class(target: str) -> None:
    import importlib
    import inspect

    module, _, name = target.rpartition(".")
    made = getattr(importlib.import_module(module), name)
    assert arguments_of(target) == set(inspect.signature(made).parameters)


def test_the_check_brings_no_torch() -> None:
    import subprocess

    code = (
        "import sys, factory; from factory.config.build import verify\n"
        "verify(factory.compose(['paths.data_dir=/nowhere'])); print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
