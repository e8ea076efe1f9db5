"""Imported once by the fork server, so that each worker starts with torch in memory. Imports, and nothing else:
a tensor operation would start OpenMP threads, which do not survive a fork, and CUDA cannot be forked at all."""

import contextlib
import gc
import signal

from tcsweep._process import die_with_parent

die_with_parent()  # first: an import may take long, and the sweep may be gone by its end

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the sweep's to answer
with contextlib.suppress(Exception):  # each worker imports again, and reports what is wrong
    import torch  # noqa: F401
    import torchvision  # noqa: F401

gc.collect()
gc.freeze()  # what is here stays: no worker needs to go through it again
