"""Command-line entry: the run folder, options of a continued run, and errors shown as advice.

An error ends with advice on one screen, not a stack of frames.
"""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from factory.commands.startup import DEBUG, is_closed_output, say
from factory.config.build import preflight, verify
from factory.config.check import check
from factory.config.compose import (
    HYDRA_VERSION,
    compose,
    conf_dir,
    is_no_choice,
    refusals,
    register,
    tidy,
)
from factory.config.run_folder import (
    HYDRA,
    claim,
    continued,
    former_config_dir,
    former_overrides,
    newest_checkpoint,
    unwritable,
)
from factory.config.secrets import without_secrets, written_secrets
from factory.demo.session import demo_session, promised
from factory.errors import ConfigError, FactoryError
from factory.untrusted_text import json_text, printable

TRACEBACK = "Traceback (most recent call last)"
# A command that leaves no run folder and no log behind.
NO_FOLDER = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.job_logging.root.handlers=[console]",
    "~hydra.job_logging.handlers.file",
)

register()
hydra_main = hydra.main(
    version_base=HYDRA_VERSION, config_path=str(conf_dir()), config_name="config"
)


@contextmanager
def advice() -> Iterator[None]:
    """End the process with advice if the `with` block raises an error of the factory's.

    Stands inside a Hydra main function: what gets past it, Hydra reports in its own way.
    """
    try:
        yield
    except FactoryError as error:
        _end(describe(error), error)


@contextmanager
def session(cfg: DictConfig) -> Iterator[tuple[DictConfig, list[str]]]:
    """Verify a composed config, start what the demo needs, and check the storages.

    What is wrong with them, or raised in the `with` block, ends the process with advice.

    Yields:
        The verified config, and the overrides that were given.
    """
    overrides = list(HydraConfig.get().overrides.task)
    with advice(), promised(cfg):
        checked = verify(cfg, overrides)  # before the demo's data is written
    with advice(), demo_session(cfg):
        preflight(checked, overrides)
        yield checked, overrides


class RunFolder(Callback):
    """Gives each run, and each sweep, a folder of its own; one of Hydra's callbacks.

    Hydra turns errors of its callbacks into warnings, so what is wrong ends the process here.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Make the folder of a run, unless its config holds secrets: nothing of them is written."""
        with advice():
            _refuse_secrets(config)
            claim(config, "run")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Make the folder of a sweep, unless what it goes through holds secrets."""
        with advice():
            _refuse_secrets(config)
            claim(config, "sweep")

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a job whose option holds secrets, as a file that a sweep goes through may."""
        with advice():
            try:
                _refuse_secrets(config)
            except ConfigError:  # Hydra has written the config of a job by now
                _remove_written(config)
                raise


def _refuse_secrets(config: DictConfig) -> None:
    found = written_secrets(config, config.hydra.overrides.task)
    if problems := list(dict.fromkeys(secret.problem for secret in found)):
        raise ConfigError(problems)


def _remove_written(config: DictConfig) -> None:
    if config.hydra.output_subdir is not None:
        written = Path(config.hydra.runtime.output_dir) / config.hydra.output_subdir
        shutil.rmtree(written, ignore_errors=True)


def run(main: Callable[[], Any], arguments: Sequence[str] | None = None) -> None:
    """Call a Hydra main function, and end with advice if its config cannot be composed.

    Args:
        main: A function decorated with `hydra.main`.
        arguments: Command-line arguments; those of this process if None.
    """
    given = sys.argv[1:] if arguments is None else arguments
    # Otherwise Hydra prints errors itself, one at a time and without a suggestion.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        main()
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        _end(_composition_text(error, given), error)
    except OSError as error:
        if _has_begun(main, error) or is_closed_output(error):
            raise
        _end(describe(_unwritable(error)), error)
    except ValueError as error:
        if isinstance(error.__cause__, OSError) and not _has_begun(main, error):
            _end(describe(_unwritable(error.__cause__)), error)  # the log that cannot be opened
        if not is_no_choice(error):
            raise
        _end(_composition_text(error, given), error)


def run_task(task: Callable[[], Any], arguments: Sequence[str], *fixed: str) -> None:
    """Call a Hydra main function on arguments and fixed overrides; see `run`."""
    # Hydra reads its arguments from here, and wants all overrides in one row.
    overrides = [a for a in arguments if a.startswith("~") or ("=" in a and a[:1] != "-")]
    flags = [text for text in arguments if text not in overrides]
    sys.argv = [sys.argv[0], *flags, *overrides, *fixed]
    run(task, arguments)


def add_outputs(parser: argparse.ArgumentParser, what: str) -> None:
    """Add options for the files that a command writes: a page, and `what` as JSON."""
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page to look at")
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"write the {what} as JSON")


def check_outputs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a usage error if a file cannot be written for want of its folder."""
    for file in (options.html, options.json):
        if file is not None and not file.absolute().parent.is_dir():
            parser.error(f"{file}: there is no folder {file.parent}; make it first")


def write_outputs(
    options: argparse.Namespace, values: Mapping[str, Any], page: Callable[[], str]
) -> None:
    """Write the files asked for: values as JSON, and a page."""
    if options.json:
        options.json.write_text(json_text(values, indent=1) + "\n", encoding="utf-8")
    if options.html:
        options.html.write_text(page(), encoding="utf-8")
        print(f"wrote {options.html}")


def continuing(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a run, with those of the run that `ckpt_path=last` continues.

    Its overrides come first, but for what is given now; so does its folder of configs.
    """
    given = list(arguments)
    flags = _parse(given)
    if flags.config_path or "ckpt_path=last" not in flags.overrides:
        return given
    with advice():
        found = _continued_run(flags)
        if found is None or not (found[0] / HYDRA).is_dir():
            return given  # what is missing is said where the checkpoint is needed
        folder, checkpoint = found
        taken = continued(former_overrides(folder), flags.overrides)
        config_dir = None if flags.config_dir else former_config_dir(folder)
    if "LOCAL_RANK" not in os.environ:  # said once, by the process that starts the others
        say(f"ckpt_path=last goes on with {checkpoint}")
        if taken:
            say(f"  and the options of its run: {shlex.join(taken)}")
    return [*(["--config-dir", config_dir] if config_dir else []), *taken, *given]


def _continued_run(flags: argparse.Namespace) -> tuple[Path, Path] | None:
    """Return the run to be continued and its checkpoint: of its own folder, or the newest one."""
    own = [text for text in flags.overrides if text.startswith("hydra.run.dir=")]
    folder = Path(own[-1].partition("=")[2].strip("'\"")) if own else None
    if folder is not None and (found := newest_checkpoint(folder)):
        return found
    # Other overrides may hang on those of the run that is yet to be found.
    where = [text for text in flags.overrides if text.lstrip("+").startswith(("paths", "local"))]
    cfg = compose(where, config_dir=flags.config_dir)
    return newest_checkpoint(Path(cfg.paths.output_dir))


def _has_begun(main: Callable[[], Any], error: BaseException) -> bool:
    """Tell whether an error comes from the decorated function, not from Hydra before it."""
    code = getattr(getattr(main, "__wrapped__", main), "__code__", None)
    return any(frame.f_code is code for frame, _ in walk_tb(error.__traceback__))


def _unwritable(error: OSError) -> FactoryError:
    return unwritable(Path(error.filename or "."), error)


def describe(error: BaseException) -> str:
    """Return an error's message and notes as a paragraph each."""
    # A stack of frames in another process is shown with this one's, see DEBUG.
    notes = [note for note in getattr(error, "__notes__", []) if TRACEBACK not in note]
    kind = type(error).__name__.removesuffix("Error")
    text = "\n".join([f"{kind} error: {error}", *(f"  {note}" for note in notes)])
    return printable(without_secrets(text), keep="\n\t")


def _composition_text(error: Exception, arguments: Sequence[str]) -> str:
    """Return what is wrong with each override; Hydra names the first alone."""
    given = _parse(arguments)
    problems: list[str] = []
    # A sweep is no single config, and another primary config is not ours to compose.
    ours = not (given.multirun or given.config_name or given.config_path)
    if ours and not isinstance(error, YAMLError):
        problems, accepted = refusals(given.overrides, given.config_dir)
        problems += _value_problems(accepted, given.config_dir) if problems else []
    return describe(ConfigError(problems or [tidy(error)]))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the flags of Hydra's that say what is composed; the rest are overrides."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn")
    parser.add_argument("--config-path", "-cp")
    parser.add_argument("--multirun", "-m", action="store_true")
    given, rest = parser.parse_known_args(arguments)
    given.overrides = [text for text in rest if "=" in text or text.startswith("~")]
    return given


def _value_problems(overrides: Sequence[str], config_dir: str | None) -> list[str]:
    """Return what is wrong with values that Hydra has no word against."""
    try:
        cfg = compose(overrides, config_dir=config_dir)
        OmegaConf.set_struct(cfg, False)
        check(cfg, overrides)
    except ConfigError as error:
        return error.problems
    return []


def _end(text: str, error: BaseException) -> NoReturn:
    if os.environ.get(DEBUG) == "1":
        raise error
    say(f"{text}\n(the full traceback: {DEBUG}=1)")
    raise SystemExit(1) from None
