"""Which prompts does a file name?"""

from pathlib import Path

from factory.errors import ConfigError, ObjectNotFoundError


def read_prompts(path: str) -> list[str]:
    """Read a file of this machine, one prompt a line; blank lines are none.

    Raises:
        ObjectNotFoundError: There is no such file.
        ConfigError: It cannot be read as text.
    """
    if Path(path).exists() and not Path(path).is_file():  # a pipe would wait for a writer
        raise ConfigError(
            f"prompts_file {path!r} is no file; name a text file of one prompt a line"
        )
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ObjectNotFoundError(
            f"no file of prompts {path!r}; mend prompts_file, which is relative to the folder the "
            "run was started in"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts_file {path!r} cannot be read as UTF-8 text: {error}") from error
    return [line for line in (line.strip() for line in text.splitlines()) if line]
