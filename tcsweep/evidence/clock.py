"""The SM clock, measured in band: cycles over nanoseconds, both counted by the GPU itself. For workers: torch inside.

The kernel is PTX text, which every driver assembles for its own GPU (PTX ISA, "%clock64", "%globaltimer"): nothing of
NVRTC or of torch's private functions is needed, and it is the same from torch 2.1 on."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from typing import Any

SPIN_NS = (
    200_000  # the timer moves in steps of up to a microsecond or so: half a percent, were its edges not waited for
)
CYCLES_MOST = 4_000_000  # ends a wait on a timer that stands: 2 ms at 2 GHz
KERNEL = "tcsweep_clock"
# One thread: wait for an edge of the timer, then for the first edge after the spin; both counters at both.
PTX = f"""
.version 6.0
.target sm_50
.address_size 64

.visible .entry {KERNEL}(.param .u64 out, .param .u64 spin_ns, .param .u64 cycles_most)
{{
  .reg .pred %near, %again;
  .reg .b64 %out, %spin, %most, %first, %start, %t0, %c0, %t1, %c1, %ns, %cycles;
  ld.param.u64 %out, [out];
  ld.param.u64 %spin, [spin_ns];
  ld.param.u64 %most, [cycles_most];
  cvta.to.global.u64 %out, %out;
  mov.u64 %first, %globaltimer;
  mov.u64 %start, %clock64;
EDGE:
  mov.u64 %t0, %globaltimer;
  mov.u64 %c0, %clock64;
  sub.u64 %cycles, %c0, %start;
  setp.lt.u64 %near, %cycles, %most;
  setp.eq.and.u64 %again, %t0, %first, %near;
  @%again bra EDGE;
SPIN:
  mov.u64 %t1, %globaltimer;
  mov.u64 %c1, %clock64;
  sub.u64 %ns, %t1, %t0;
  sub.u64 %cycles, %c1, %c0;
  setp.lt.u64 %near, %cycles, %most;
  setp.lt.and.u64 %again, %ns, %spin, %near;
  @%again bra SPIN;
  st.global.u64 [%out], %c0;
  st.global.u64 [%out+8], %t0;
  st.global.u64 [%out+16], %c1;
  st.global.u64 [%out+24], %t1;
  ret;
}}
"""


def sm_clock() -> Callable[[], float | None] | None:
    """A measurement of the SM clock of torch's current GPU, in MHz; None where it cannot be made. Each call launches
    0.2 ms of one thread on the current stream, after what is queued there, and waits for it; it may be None itself.
    Call it at the end of queued work for the clock under that load: an idle GPU lowers its clock."""
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    device = torch.cuda.current_device()

    def measure() -> float | None:
        with contextlib.suppress(Exception), torch.cuda.device(device):
            launch(torch.cuda.current_stream().cuda_stream, counters.data_ptr())
            return mhz(counters.tolist())  # waits for the stream
        return None

    try:
        with torch.cuda.device(device):
            counters = torch.zeros(4, dtype=torch.int64, device="cuda")  # makes the context current, too
            launch = load(ctypes.CDLL("libcuda.so.1"))
    except Exception:  # no driver of that name, or one that does not assemble PTX
        return None
    return None if measure() is None else measure


def mhz(counters: Sequence[int]) -> float | None:
    """Megahertz from (cycles, nanoseconds) at the begin and (cycles, nanoseconds) at the end of the spin; None where
    the timer did not move on by the whole spin: it stands, or it is none."""
    cycles, elapsed_ns = counters[2] - counters[0], counters[3] - counters[1]
    return cycles / elapsed_ns * 1e3 if cycles > 0 and elapsed_ns >= SPIN_NS else None


def load(driver: Any) -> Callable[[int, int], None]:
    """The kernel's launch, called with a stream and the address of four 64-bit counters on the GPU, both of the
    context that is current now. `driver` is CUDA's driver library. Raises RuntimeError where it refuses."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _check(driver.cuModuleLoadData(ctypes.byref(module), ctypes.c_char_p(PTX.encode())))
    _check(driver.cuModuleGetFunction(ctypes.byref(function), module, ctypes.c_char_p(KERNEL.encode())))
    one, none = ctypes.c_uint(1), ctypes.c_uint(0)

    def launch(stream: int, address: int) -> None:
        values = [ctypes.c_uint64(value) for value in (address, SPIN_NS, CYCLES_MOST)]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        grid_and_block = (one,) * 6
        _check(driver.cuLaunchKernel(function, *grid_and_block, none, ctypes.c_void_p(stream), pointers, None))

    return launch


def _check(error: int) -> None:
    if error:
        raise RuntimeError(f"CUDA driver error {error}")
