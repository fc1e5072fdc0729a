"""Which samples did a step of a run use, and why?

Asks the plan of a run, and the ledger it wrote, without scanning or training anything:

  python scripts/explain.py RUN step=1234

  step=1234         one step; optimizer steps count from 1 over the whole run
  step=1200..1240   several, such as those around a rise of the loss
  sample=KEY        the steps that used a sample, as KEY or BACKEND:KEY

RUN is a run folder. Of a run that continued others, name them too, the newest first: their
ledgers are read together. Other arguments change options, as for train.py.
"""

from factory.commands import startup

# isort: split

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

from factory.commands import cli
from factory.config import compose
from factory.config.build import verify
from factory.config.run_folder import FormerRun, former_run, run_length
from factory.demo.session import demo_session, promised
from factory.errors import CacheError, ConfigError, StorageError
from factory.reports.explain.request import ExplainRequest
from factory.reports.explain.request import parse as parse_request
from factory.untrusted_text import json_text

# Torch's threads spin while they wait; nothing here needs them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

compose.register()


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Return this script's own options, what is asked, and overrides of the run's config."""
    parser = argparse.ArgumentParser(
        prog="explain.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", type=Path, nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page to look at")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answer as JSON")
    settings = [text for text in arguments if "=" in text and not text.startswith("--")]
    rest = [text for text in arguments if text not in settings]
    given = parser.parse_args(rest)
    for file in (given.html, given.json):
        if file is not None and not file.absolute().parent.is_dir():
            parser.error(f"{file}: there is no folder {file.parent}; make it first")
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
    from factory.reports.explain.answer import Explainer
    from factory.reports.explain.explain_terminal import show
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
        if options.json:
            text = json_text(findings.as_json(), indent=1)
            options.json.write_text(text + "\n", encoding="utf-8")
        if options.html:
            from factory.reports.explain.explain_page import page

            text = page(findings, data.sources, data.registry.engine.here)
            options.html.write_text(text, encoding="utf-8")
            print(f"wrote {options.html}")
    finally:
        data.close()


if __name__ == "__main__":
    startup.speak()
    main(sys.argv[1:])
