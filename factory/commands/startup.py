"""Start of every command: what Ctrl-C prints, and output that any terminal can show.

Imported first, before what takes seconds to load; brings what Python has loaded anyway.
"""

import codecs
import importlib
import logging
import os
import select
import sys
from types import TracebackType
from typing import NoReturn

# What a shell says of a command that was interrupted.
INTERRUPTED = 130
# And of one that was ended because nobody reads what it prints, as by `| head`.
CLOSED = 141
# Set to 1, shows the full traceback of every error.
DEBUG = "FACTORY_DEBUG"
# What stands for signs that an output cannot show: bars, arrows, dots.
_PLAIN = dict.fromkeys("█▉▊▋▌", "#") | dict.fromkeys("▍▎▏", " ") | {"…": "...", "→": "->"}
_ERRORS = "legible"


def run(command: str) -> NoReturn:
    """Run a command of this package on the arguments of this process, and exit.

    Args:
        command: Its module's name.
    """
    speak()
    # Torch's threads spin while they wait, which on a busy machine takes the cores from each other
    # (a run was seen to take many times as long). Read when torch loads; a setting of yours wins.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(importlib.import_module(f"factory.commands.{command}").main(sys.argv[1:]))


def is_interrupt(error: BaseException | None) -> bool:
    """Tell whether an error is a Ctrl-C, or came of one: some imports report it as their own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def is_closed_output(error: BaseException | None) -> bool:
    """Tell whether an error comes of a reader of the output that has gone, as `| head` does."""
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        poll = select.poll()
        poll.register(sys.__stdout__.fileno(), 0)  # type: ignore[union-attr]
        return bool(poll.poll(0))  # only errors and hang-ups are told of
    except (OSError, ValueError, AttributeError):
        return False


def say(text: str) -> None:
    """Print to stderr, if that can still be written: it may lie on the disk that is full."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        return


def speak() -> None:
    """Let file names be UTF-8, and output be whatever the terminal or pipe takes.

    In a locale of ASCII (LC_ALL=C with PYTHONUTF8=0) Python can neither open nor print other
    names: the command is started once more, in Python's UTF-8 mode. What an output cannot show
    is escaped.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves
    # Or each line of a log that nobody reads any more brings a traceback.
    logging.raiseExceptions = os.environ.get(DEBUG) == "1"
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS)


def _legible(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace what an output cannot show by a plain sign, or escape it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    if plain := _PLAIN.get(error.object[error.start]):
        return plain, error.start + 1
    one = UnicodeEncodeError(
        error.encoding, error.object, error.start, error.start + 1, error.reason
    )
    return codecs.backslashreplace_errors(one)


def _excepthook(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if is_closed_output(error):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is flushed at the end
        sys.exit(CLOSED)
    if not is_interrupt(error):
        sys.__excepthook__(kind, error, traceback)
        return
    # In a process group torch holds back what hooks print, and loses it where they exit.
    sys.stderr = sys.__stderr__ or sys.stderr
    if os.environ.get(DEBUG) == "1":
        sys.__excepthook__(kind, error, traceback)
    elif os.environ.get("LOCAL_RANK", "0") == "0":  # once on each machine
        told = str(error) if isinstance(error, KeyboardInterrupt) else ""
        say(f"interrupted {told}".rstrip())
    sys.exit(INTERRUPTED)


codecs.register_error(_ERRORS, _legible)
sys.excepthook = _excepthook
