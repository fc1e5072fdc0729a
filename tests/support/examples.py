"""How many examples a property test takes."""

from hypothesis import settings

# A usual run draws no more of a property: without a seed each run draws others, and all of them
# are for the time before a release.
USUAL = 30


def examples(count: int) -> int:
    """Return `count` under `--hypothesis-profile=thorough`, else 30 at most."""
    return count if settings.get_current_profile_name() == "thorough" else min(count, USUAL)
