"""Reading of a text file of this machine that a setting names."""

from pathlib import Path

from factory.errors import ConfigError, ObjectNotFoundError


def read_local_text(path: str, setting: str, *, kind: str, wanted: str) -> str:
    """Read a whole file of UTF-8 text, with or without a byte order mark.

    Args:
        path: The file, relative to the folder the run was started in.
        setting: Name of the setting that names it.
        kind: What messages call such a file, such as "filter file".
        wanted: What to name instead of something that is no file.

    Raises:
        ObjectNotFoundError: There is no such file.
        ConfigError: It cannot be read as text.
    """
    if Path(path).exists() and not Path(path).is_file():  # a pipe would wait for a writer
        raise ConfigError(f"{setting} {path!r} is no file; name {wanted}")
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ObjectNotFoundError(
            f"no {kind} {path!r}; correct {setting}, which is relative to the folder the run was "
            "started in"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting} {path!r} cannot be read as UTF-8 text: {error}") from error
