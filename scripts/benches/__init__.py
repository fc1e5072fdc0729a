"""What do the benchmarks share?

A benchmark is a module here. The first sentence of its docstring says what it measures; it has
`arguments(parser)`, which adds its options, and `run(options)`, which yields its lines. A new
file is found by its name.
"""

from pathlib import Path
from typing import Any

# Metric, value, unit, and what the value depends on.
Line = tuple[str, float, str, dict[str, Any]]

# Enough for a steady median on a shared machine, few enough to wait for.
RUNS = 5
ROOT = Path(__file__).parent.parent.parent
