"""Imported once by the fork server, so that each worker starts with torch in memory. Imports, and nothing else:
a tensor operation would start OpenMP threads, which do not survive a fork, and CUDA cannot be forked at all."""

import gc

from tcsweep._process import die_with_parent

die_with_parent()  # first: an import may take long, and the sweep may be gone by its end

import torch  # noqa: E402, F401
import torchvision  # noqa: E402, F401

gc.collect()
gc.freeze()  # what is here stays: no worker needs to go through it again
