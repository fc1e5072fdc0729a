"""How a command that goes wrong ends: with every problem, and no stack of frames."""

from pathlib import Path

import pytest

from factory.commands import cli
from factory.config.compose import compose
from factory.errors import ConfigError, MediaError


def ended(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> str:
    """Return what is printed when Hydra refuses these arguments."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # left as it was: `run` only sets a default
    with pytest.raises(SystemExit) as caught:
        cli.run(refused_by_hydra, arguments)
    assert caught.value.code == 1
    return capsys.readouterr().err


def refused_by_hydra() -> None:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from factory.config.compose import conf_dir, register

    register()
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        hydra_compose("config", ["data=mutli"])


def test_all_refusals_and_bad_values_are_told_together(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ended(["data=mutli", "storage=s4", "data.batch_size=0"], capsys, monkeypatch)
    assert text.startswith("Config error: 3 problems:")
    assert "group data has no option 'mutli'; did you mean 'multi'?" in text
    assert "group storage has no option 's4'" in text
    assert "data.batch_size must be at least 1, got 0" in text
    assert "FACTORY_DEBUG=1" in text
    assert "Traceback" not in text


def test_options_of_an_own_config_folder_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults: [base]\n")
    arguments = ["--config-dir", str(tmp_path), "data=mine", "sede=1"]
    text = ended(arguments, capsys, monkeypatch)
    assert "the config has no option 'sede'; did you mean 'seed'?" in text
    assert "'mine'" not in text


def test_a_sweep_tells_the_first_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ended(["-m", "sampling=uniform,auto", "data=mutli"], capsys, monkeypatch)
    assert text.startswith("Config error: group data has no option 'mutli'")
    assert "sampling" not in text


def test_debug_shows_the_error_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli.DEBUG, "1")

    def fail() -> None:
        with cli.advice():
            raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        fail()


@pytest.mark.parametrize("error", [KeyError("bug"), KeyboardInterrupt()])
def test_what_is_no_error_of_the_factory_passes(error: BaseException) -> None:
    def fail() -> None:
        with cli.advice():
            raise error

    with pytest.raises(type(error)):
        fail()


def test_notes_stand_below_the_message() -> None:
    error = MediaError("truncated", "a.jpg")
    error.add_note("while reading 'a.jpg'")
    assert cli.describe(error) == "Media error: truncated: a.jpg\n  while reading 'a.jpg'"


def test_a_stack_of_another_process_is_for_those_who_ask_for_one() -> None:
    error = MediaError("truncated", "a.jpg")
    error.add_note("in the worker process:\nTraceback (most recent call last):\n  ...")
    assert cli.describe(error) == "Media error: truncated: a.jpg"


def test_composing_in_a_program_raises_instead() -> None:
    with pytest.raises(ConfigError, match="did you mean 'multi'"):
        compose(["data=mutli"])


def test_a_group_that_is_set_to_nothing_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_callbacks() -> None:
        from hydra import compose as hydra_compose
        from hydra import initialize_config_dir

        from factory.config.compose import conf_dir, register

        register()
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            hydra_compose("config", ["callbacks=null"])

    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit):
        cli.run(no_callbacks, ["callbacks=null", "seed=1"])
    text = capsys.readouterr().err
    assert text.startswith("Config error: callbacks=null: Config group override must be")
    assert "choose an option of the group" in text


def test_other_value_errors_are_not_taken_for_hydras() -> None:
    def bug() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        cli.run(bug, [])
