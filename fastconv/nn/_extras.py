"""Packages that only some functions need: imported when used, and missing with a message that says what to install."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, purpose: str) -> Any:
    """Return the imported `module`, or raise ImportError with the command that installs it.

    Parameters
    ----------
    module : str
        Its dotted name.
    purpose : str
        What cannot be done without it, the subject of "needs".
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], module.partition(".")[0])
        raise ImportError(f"{purpose} needs {package}: pip install fastconv[demo]", name=module) from error
