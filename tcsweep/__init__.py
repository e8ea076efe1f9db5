"""tcsweep: how much faster does a network run on this device's tensor cores, and if it doesn't, why not?

From Python: `from tcsweep import run_sweep, load_results`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tcsweep.api import Results, load_results, run_sweep

__version__ = "0.1.0"
__all__ = ["Results", "load_results", "run_sweep"]


def __getattr__(name: str) -> Any:
    """The public functions, imported when they are first asked for: the command line needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tcsweep import api

    return getattr(api, name)
