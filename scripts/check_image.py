"""Refuse an image whose Python or torch is too old for tcsweep, before anything is installed.

In words that any Python 3 understands, so that one that is too old can say so itself.
"""

import sys

PYTHON = (3, 10)
TORCH = (2, 1)
ADVICE = "take another BASE_IMAGE, see docs/containers.md"


def numbers(version):
    """The first two numbers of a version: "2.6.0a0+nv24.12" is (2, 6)."""
    found = []
    for part in version.split(".")[:2]:
        digits = "".join(c for c in part if c.isdigit())
        found.append(int(digits or 0))
    return tuple(found)


def complaint(python, torch):
    """What is wrong with this Python, (3, 8), and this torch, "2.6.0" or None; None where nothing is."""
    if python < PYTHON:
        said = "this image's Python is {}.{}, and tcsweep needs {}.{} or newer".format(*(python + PYTHON))
    elif torch is None:
        said = "this image has no torch"
    elif numbers(torch) < TORCH:
        said = "this image's torch is {}, and tcsweep needs {}.{} or newer".format(torch, *TORCH)
    else:
        return None
    return "error: " + said + ": " + ADVICE


def torch_version():
    """Of the torch that is installed; it is not imported, which may need the device's libraries."""
    from importlib import metadata  # since Python 3.8

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    here = tuple(sys.version_info[:2])
    sys.exit(complaint(here, torch_version() if here >= PYTHON else None))
