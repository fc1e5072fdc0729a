"""Settings of engines: from a config to the engine, and refused."""

import pytest

from factory.config.build import build
from factory.config.check import check
from factory.config.compose import compose
from factory.config.schema.help_text import help_text
from factory.engine.local_engine import LocalEngine
from factory.engine.ray.ray_engine import RayEngine
from factory.errors import ConfigError

FOLDER = "storage.root=data"


def test_an_engine_is_built_from_its_group() -> None:
    data = build(compose([FOLDER, "engine.workers=3"]))
    assert data.registry.engine == LocalEngine(workers=3)
    overrides = [
        FOLDER, "engine=ray", "engine.address=auto", "engine.encoders=4",
        "engine.gpus_per_encoder=0.5", "engine.workers=6", "+engine.runtime_env.pip=[mine]",
    ]  # fmt: skip
    data = build(compose(overrides), overrides)
    assert data.registry.engine == RayEngine(
        "auto", encoders=4, gpus_per_encoder=0.5, workers=6, runtime_env={"pip": ["mine"]}
    )
    assert data.registry.engine.here == LocalEngine(workers=6)
    data.close()  # connects to nothing


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("engine.encoders=0", "engine.encoders must be at least 1, got 0"),
        ("engine.workers=0", "engine.workers must be at least 1, got 0"),
        ("engine.gpus_per_encoder=-1", "engine.gpus_per_encoder must be at least 0, got -1"),
        ("engine.cpus_per_encoder=0", "engine.cpus_per_encoder must be above 0, got 0"),
        (
            "+engine.runtime_env.env_vars.AWS_SECRET_ACCESS_KEY=x",
            "runtime_env.env_vars.AWS_SECRET_ACCESS_KEY looks like a secret",
        ),
    ],
)
def test_what_ray_cannot_be(override: str, said: str) -> None:
    overrides = [FOLDER, "engine=ray", override]
    with pytest.raises(ConfigError) as caught:
        check(compose(overrides), overrides)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"encoders": 0}, "encoders must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"gpus_per_encoder": -1.0}, "gpus_per_encoder must be at least 0"),
        ({"cpus_per_encoder": 0.0}, "cpus_per_encoder must be above 0"),
    ],
)
def test_notebooks_are_checked_too(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RayEngine(**settings)  # type: ignore[arg-type]


def test_help_lists_the_options_of_both_engines() -> None:
    text = help_text()
    assert "engine=local, threads of this machine (engine.*)\n  workers  " in text
    assert "engine=ray, processes of a cluster (engine.*)\n  address  " in text
