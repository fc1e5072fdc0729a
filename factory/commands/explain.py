"""Explanation of steps: which samples a step of a run used, and why.

Asks the plan of a run, and the ledger it wrote, without scanning or training anything:

  python scripts/explain.py RUN step=1234

  step=1234         one step; optimizer steps count from 1 over the whole run
  step=1200..1240   several, such as those around a rise of the loss
  sample=KEY        the steps that used a sample, as KEY or BACKEND:KEY

RUN is a run folder. Of a run that continued others, name them too, the newest first: their
ledgers are read together. Other arguments change options, as for train.py.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

from factory.commands import cli
from factory.config.build import verify
from factory.config.run_folder import FormerRun, former_run, run_length
from factory.demo.session import demo_session, promised
from factory.errors import CacheError, ConfigError, StorageError
from factory.reports.explain.explanation import ExplainRequest
from factory.reports.explain.explanation import parse as parse_request


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Return this command's own options, what is asked, and overrides of the run's config."""
    parser = argparse.ArgumentParser(
        prog="explain.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", type=Path, nargs="+", metavar="RUN", help="run folder")
    cli.add_outputs(parser, "answer")
    settings = [text for text in arguments if "=" in text and not text.startswith("--")]
    rest = [text for text in arguments if text not in settings]
    given = parser.parse_args(rest)
    cli.check_outputs(parser, given)
    asked = [text for text in settings if text.partition("=")[0] in ("step", "sample")]
    return given, asked, [text for text in settings if text not in asked]


def main(arguments: Sequence[str]) -> None:
    """Answer, print, and write the files asked for."""
    options, asked, overrides = parse(arguments)
    for name in ("html", "json"):
        file = getattr(options, name)
        setattr(options, name, file and file.absolute())
    with cli.advice():
        request = parse_request(asked)
        run = former_run(options.run[0].absolute(), overrides)
        others = [former_run(folder.absolute()) for folder in options.run[1:]]
        if not run.working_dir.is_dir():
            raise ConfigError(
                f"the run was started in {run.working_dir}, where its relative paths begin; there "
                "is no such folder here: mount or make it"
            )
    with chdir(run.working_dir), cli.advice():
        with promised(run.config):
            run = replace(run, config=verify(run.config, run.overrides))
        with demo_session(run.config):
            _answer(run, others, request, options)


def _answer(
    run: FormerRun,
    others: Sequence[FormerRun],
    request: ExplainRequest,
    options: argparse.Namespace,
) -> None:
    # Imported here: what is wrong with a config is said before torch has loaded.
    from factory.config.build import build
    from factory.reports.explain.explain_page import page
    from factory.reports.explain.explain_terminal import show
    from factory.reports.explain.explainer import Explainer
    from factory.reports.explain.ledger_only import recorded_findings

    data = build(run.config, run.overrides)
    folders = [each.config.data.ledger for each in (run, *others)]
    ledgers = [Path(folder) for folder in folders if folder]
    notes = [f"an option of the run has changed since: {line}" for line in run.changes]
    try:
        try:
            data.registry.cache.storage.check()  # at once, not after all of its retries
            data.setup()
        except (StorageError, CacheError) as error:
            findings = recorded_findings(str(run.folder), ledgers, request, error)
        else:
            end = min(
                limit if kind == "steps" else sum(map(data.plan.steps, range(limit)))
                for kind, limit in [*run_length(run.config), ("steps", sys.maxsize)]
            )
            findings = Explainer(data, str(run.folder), end, ledgers, notes).answer(request)
        show(findings)
        engine = data.registry.engine.here
        cli.write_outputs(options, findings.as_json(), lambda: page(findings, data.sources, engine))
    finally:
        data.close()
