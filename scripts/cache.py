"""Show, verify, tidy and copy the cache. See `factory/commands/cache.py`."""

from factory.commands.startup import run

if __name__ == "__main__":
    run("cache")
