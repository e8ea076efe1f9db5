"""What was seen of what ran: plain data with a JSON form. Facts only; `explain` judges them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["tensor-core", "cuda-core", "unknown"]
Kind = Literal[
    "convolution/GEMM",
    "attention",
    "batch norm",
    "elementwise",
    "pooling",
    "layout conversion",
    "copy",
    "other",
]
MULTIPLYING: tuple[Kind, ...] = ("convolution/GEMM", "attention")  # what tensor cores could do


@dataclass(frozen=True)
class OperatorCount:
    """How often an operator that does arithmetic was called with arguments of these dtypes."""

    operator: str  # "aten.conv2d"
    dtypes: tuple[str, ...]  # of its floating tensor arguments, in the order of the call: ("float16", "float16")
    calls: int
    layout: str | None = None  # of a convolution's input, "nchw" or "nhwc"; None: no convolution, or both at once


@dataclass(frozen=True)
class Dtypes:
    """The dtypes of convolution, linear, matmul and attention operators in one call of what was timed."""

    source: str  # how they were seen: "ATen operators of one call"; each engine says its own
    operators: tuple[OperatorCount, ...] = ()
    denormal_fraction: float | None = None  # of the operators' numbers, first of each batch; not looked for on a GPU
    missing: str | None = None  # why nothing was seen


@dataclass(frozen=True)
class Kernel:
    """All launches of one GPU kernel in one iteration."""

    name: str
    calls: int
    device_ms: float
    unit: Unit
    kind: Kind


@dataclass(frozen=True)
class Kernels:
    """One profiled iteration, longest kernels first."""

    kernels: tuple[Kernel, ...] = ()
    union_ms: float | None = None  # time with at least one kernel running
    span_ms: float | None = None  # from the first kernel's start to the last one's end
    missing: str | None = None  # why there is no profile, and what mends that

    @property
    def device_ms(self) -> float:
        """Time of all kernels, overlaps counted twice."""
        return sum(k.device_ms for k in self.kernels)

    @property
    def tensor_core_time_fraction(self) -> float | None:
        """Share of device time in kernels known to use tensor cores; None without a profile."""
        return self._share("tensor-core")

    @property
    def unknown_time_fraction(self) -> float | None:
        """Share of device time in kernels whose name does not tell; None without a profile."""
        return self._share("unknown")

    @property
    def ms_by_kind(self) -> dict[str, float]:
        """Milliseconds an iteration by kind of kernel, longest first."""
        found: dict[str, float] = {}
        for kernel in self.kernels:
            found[kernel.kind] = found.get(kernel.kind, 0.0) + kernel.device_ms
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _share(self, unit: Unit) -> float | None:
        if not self.kernels:
            return None
        return sum(k.device_ms for k in self.kernels if k.unit == unit) / self.device_ms


@dataclass(frozen=True)
class LayerTime:
    """What one layer took of an iteration, without the layers within it."""

    name: str  # torch's module path, "layer1.0.conv1"; empty: the model's own forward, and what is around it
    module: str  # its class, "Conv2d"
    ms: float  # all its calls: device time of its kernels, on a CPU wall time
    kernels: tuple[Kernel, ...] = ()  # longest first; on a CPU there are none


@dataclass(frozen=True)
class Layers:
    """One iteration by layer, in the order of the calls."""

    source: str  # how they were seen
    layers: tuple[LayerTime, ...] = ()
    missing: str | None = None  # why they were not

    @property
    def ms(self) -> float:
        """Of all of them."""
        return sum(layer.ms for layer in self.layers)


@dataclass(frozen=True)
class Arithmetic:
    """The switches of a process that change what its arithmetic is."""

    tf32_convolution: bool
    tf32_matmul: bool
    matmul_precision: str  # torch.get_float32_matmul_precision()
    autocast: tuple[str, ...]  # "cuda:float16" for each device type for which it is on
    patched: str  # a fingerprint of torch's functions that apex's O1 replaces; "" where none is replaced
    flush_denormal: bool | None = None  # None: could not be told


@dataclass(frozen=True)
class Numerics:
    """Outputs against those of the same weights in float32, NCHW, eager."""

    inputs: int = 0
    relative_error: float | None = None  # norm of the difference over the norm of the reference
    cosine: float | None = None  # the least over inputs
    top1_agreement: float | None = None  # share of the inputs
    top1_clear: int = 0  # inputs whose reference margin exceeds twice their largest error: rounding cannot flip them
    nan: int = 0
    inf: int = 0
    missing: str | None = None  # why nothing was compared


@dataclass(frozen=True)
class LayerWork:
    """What one layer must do and move for one image, counted from shapes. Sizes in elements, not bytes."""

    name: str  # "layer1.0.conv1"
    kind: str  # "convolution" | "linear" | "attention" | "matmul" | "pooling"
    flops: float  # 2 for a multiply-add
    input_elements: int  # activations in, a residual that is added after it included
    output_elements: int
    weight_elements: int  # read once a batch
    winograd: bool = False  # a stride-1 3x3 convolution of one group: Winograd could do with a quarter
    spatial: bool = False  # a convolution whose kernel has more than one point: an FFT could do with far less
    channels_in: int | None = None  # of a convolution or linear layer, as the next three
    channels_out: int | None = None
    groups: int = 1
    kernel: tuple[int, ...] = ()  # height and width of a convolution's


@dataclass(frozen=True)
class Work:
    """A model's arithmetic and traffic at one input size, from meta tensors: never from the measured module."""

    layers: tuple[LayerWork, ...] = ()
    missing: str | None = None  # why it could not be counted

    @property
    def flops(self) -> float:
        """Floating-point operations an image, all layers."""
        return sum(layer.flops for layer in self.layers)

    @property
    def traffic_elements(self) -> int:
        """Elements an image: each layer's inputs and residual in once, its output out once; weights not counted."""
        return sum(layer.input_elements + layer.output_elements for layer in self.layers)


@dataclass(frozen=True)
class DeviceSample:
    """What the GPU, or the board, said of itself at one moment. None: it does not say."""

    at_s: float  # from the start of the round's timed blocks; before them it is negative
    sm_mhz: float | None = None
    memory_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    utilisation: float | None = None  # share of the last sampling period with a kernel running, anyone's
    throttle: int | None = None  # NVML's bits of clock event reasons; on a Jetson 0x20 where heat holds clocks down
    rails_w: dict[str, float] | None = None  # a board's power by rail, by the board's own labels
    temperatures_c: dict[str, float] | None = None  # by thermal zone
    over_current: dict[str, int] | None = None  # events since the board was switched on: oc1, oc2, oc3


@dataclass(frozen=True)
class DeviceState:
    """The GPU during one round, sampled from outside the worker and matched by UUID."""

    source: str | None = None  # "NVML", "jtop", "INA3221 and thermal nodes in sysfs"; None: nothing answered
    samples: tuple[DeviceSample, ...] = ()  # at most 200; those with 0 <= at_s <= timed_s were in the timed blocks
    timed_s: float = 0.0
    sm_mhz_max: float | None = None  # the highest clock that the GPU can be set to
    power_limit_w: float | None = None
    foreign_load: float | None = None  # share of the GPU that others used; None: could not be told
    foreign_source: str | None = None  # "processes" or "utilisation while this sweep was idle"
    foreign_memory_mib: float | None = None
    missing: str | None = None
    power_of: str | None = None  # what a board's power was read from: "INA3221 VDD_IN"
    over_current: dict[str, int] | None = None  # events in the timed blocks, by counter


@dataclass(frozen=True)
class Energy:
    """What a device used in a phase of its own, after the timing."""

    joules: float | None = None
    seconds: float | None = None
    images: int | None = None
    missing: str | None = None  # why nothing could be read
    source: str | None = None  # "NVML's energy counter", "sampled board power, INA3221 VDD_IN"


@dataclass(frozen=True)
class HostState:
    """The host during one round's timed blocks."""

    cpu_quota: float | None = None  # CPUs that the control group may use; None: no limit
    affinity: int | None = None  # CPUs that the process may run on
    threads: int | None = None  # torch's
    throttled: int | None = None  # periods in which the control group ran out of its quota, during the timed blocks
    load_1m: float | None = None  # the system's load average at their end
    foreign_load: float | None = None  # share of all CPUs that other processes used meanwhile
    swapped_mib: float | None = None  # moved to or from swap meanwhile, by anyone


@dataclass(frozen=True)
class Evidence:
    """Of one job, once, after the timing of its first round: seen on the very callable that was timed."""

    dtypes: Dtypes
    kernels: Kernels
    numerics: Numerics
    work: Work
    rates: dict[str, float]  # what this device was measured to do: FLOP/s of a large GEMM by dtype; "copy", bytes/s
    seconds: dict[str, float]  # what each part of it cost
    sm_mhz_in_band: float | None = None  # SM clock by the GPU's own counters, right after work; None: not to be had
    layers: Layers | None = None  # None: a result of an older version
