"""Reading of prompt files."""

from factory.catalog.local_text import read_local_text


def read_prompts(path: str) -> list[str]:
    """Read a file of this machine, one prompt a line; blank lines are none.

    Raises:
        ObjectNotFoundError: There is no such file.
        ConfigError: It cannot be read as text.
    """
    text = read_local_text(
        path, "prompts_file", kind="file of prompts", wanted="a text file of one prompt a line"
    )
    return [line for line in (line.strip() for line in text.splitlines()) if line]
