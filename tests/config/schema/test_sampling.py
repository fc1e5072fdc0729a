"""The mixture in a config: every option reaches its part, and bad values are named at once."""

import pytest

from factory.config.build import build, verify
from factory.config.compose import compose
from factory.errors import ConfigError
from factory.sampling.active_window import ActiveWindow
from factory.sampling.epoch_end import EpochEnd
from tests.sampling.cases import backend, walk
from tests.sampling.test_plan import Constant, LastFirst


def built(*overrides: str):
    return build(compose(overrides), overrides)


def problems(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        verify(compose(overrides), overrides)
    return str(caught.value)


def test_every_option_reaches_the_mixture() -> None:
    mixture = built("sampling.epoch=cycle", "sampling.epoch_steps=50").sampling
    plan = mixture.plan([backend("a"), backend("b")], batch_size=2, seed=1)
    assert plan.ending == EpochEnd("cycle", 50)
    assert plan.steps(3) == 50
    assert built().sampling.plan([backend("a")], batch_size=2, seed=1).ending == EpochEnd()


def test_every_option_reaches_the_backend() -> None:
    where = "data.backends.photos"
    photos = built(
        f"{where}.batch_size=8",
        f"{where}.slider_strength=-1.5",
        f"{where}.window.fade_from_step=10",
        f"{where}.window.fade_to_step=20",
    ).registry.data["photos"]
    assert (photos.batch_size, photos.slider_strength) == (8, -1.5)
    assert photos.window == ActiveWindow(fade_from_step=10, fade_to_step=20)


def test_strategies_of_another_package_are_named_by_their_targets() -> None:
    here = "tests.sampling.test_plan"
    mixture = built(
        f"sampling.selection._target_={here}.LastFirst",
        f"sampling.weighting._target_={here}.Constant",
        "+sampling.weighting.value=[0,1,2]",
    ).sampling
    assert mixture.selection == LastFirst()
    assert isinstance(mixture.weighting, Constant)
    sources = [backend(name, (4,)) for name in "abc"]
    plan = mixture.plan(sources, batch_size=2, seed=1)
    assert "".join(step.backend for step in walk(plan, 0)) == "ccbb"
    assert plan.describe()["selection"] == {"class": f"{here}.LastFirst"}


def test_all_bad_values_are_named_at_once() -> None:
    where = "data.backends.photos"
    text = problems(
        "sampling.epoch_steps=0",
        f"{where}.batch_size=0",
        f"{where}.slider_strength=inf",
        f"{where}.window.start_step=9",
        f"{where}.window.fade_to_step=5",
    )
    assert "epoch_steps must be at least 1, got 0" in text
    assert "batch_size must be at least 1, got 0" in text
    assert "slider_strength must be a finite number" in text
    assert "fade_to_step 5 comes before start_step 9" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampling.epoch=first_exhausted", "sampling.epoch_steps=5"], "contradict each other"),
        (["sampling.epoch=longest"], "longest"),
        (
            ["sampling.selection=Random"],
            "got 'Random'; set sampling.selection._target_=factory.sampling.selection.Random",
        ),
        (
            ["data.exclude=[{form_step:3,ids:[a]}]"],
            "there is no option 'form_step'; did you mean 'from_step'? options are from_step, ids",
        ),
        (
            ["data.exclude=[photos:a.jpg]"],
            "data.exclude[0] must be a mapping {ids: …, from_step: …}, got 'photos:a.jpg'",
        ),
        (["data.exclude={ids:[a]}"], "it must be a list of mappings: put [ ] around the { }"),
        (["data.exclude=[{ids:a}]"], "ids must be a list, with [ ] around what it holds"),
        (["data.backends.photos.slider_strength=abc"], "slider_strength"),
        (["data.backends.photos.window.fade_from_step=5"], "set fade_to_step to the last step"),
    ],
)
def test_a_bad_value_is_named(overrides: list[str], message: str) -> None:
    assert message in problems(*overrides)
