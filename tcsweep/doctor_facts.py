"""What `doctor` finds on this machine: plain data, judged elsewhere. torch and CUDA are asked in workers, mlflow and
Hydra imported in processes of their own; here are read only files, metadata and NVML."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from tcsweep.devices import cpu, cuda
from tcsweep.devices.apex import ApexFacts
from tcsweep.devices.board import Board
from tcsweep.devices.cpu import quota
from tcsweep.failures import classify, killed
from tcsweep.lock import holder
from tcsweep.mistakes import first_line
from tcsweep.tracking_uri import Target, check, is_http, resolved_uri, safe_uri, split_credentials, unreachable
from tcsweep.worker import Broken, Server

T = TypeVar("T")
REACH_S = 3.0  # for MLflow's server; a sweep waits longer
GPU_LOAD = ("/sys/devices/gpu.0/load", "/sys/devices/platform/gpu.0/load")  # Jetson, per mille
VARIABLES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUDA_LAUNCH_BLOCKING")
OTHER_VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "MLFLOW_TRACKING_URI")


@dataclass(frozen=True)
class Package:
    """A package as imported: its distribution's version, or what its import said."""

    version: str | None = None
    error: str | None = None
    namesake: str | None = None  # the version of another project's distribution that brings the same module


@dataclass(frozen=True)
class TorchFacts:
    """torch and torchvision, before CUDA is initialised."""

    version: str
    cuda: str | None
    cudnn: str | None
    threads: int
    torchvision: str | None
    torchvision_error: str | None = None


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees; `error` is what a small kernel or a small convolution said on it."""

    index: int
    name: str
    capability: tuple[int, int]
    memory_mib: int = 0
    uuid: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class DeviceFacts:
    """The GPUs, what this torch was built for, and why there is none."""

    gpus: tuple[Gpu, ...] = ()
    archs: tuple[str, ...] = ()
    reason: str | None = None
    cpu_error: str | None = None  # of a small convolution on the CPU


@dataclass(frozen=True)
class User:
    """A process that computes on a GPU."""

    pid: int
    name: str | None = None


@dataclass(frozen=True)
class NvmlGpu:
    """A GPU by NVML. None: not told."""

    name: str | None = None
    uuid: str | None = None
    users: tuple[User, ...] | None = None
    load_percent: float | None = None


@dataclass(frozen=True)
class Nvml:
    """What NVML told; empty where it is absent, or initialises and then answers nothing."""

    driver: str | None = None
    cuda: str | None = None  # the newest that the driver serves, "13.0"
    gpus: tuple[NvmlGpu, ...] = ()


@dataclass(frozen=True)
class Share:
    """How much of the host's processors this process may use."""

    cpus: int
    quota: float | None = None  # in CPUs


@dataclass(frozen=True)
class Folder:
    """A folder to be written: what a write there said, and the room left."""

    path: str
    error: str | None = None
    free_bytes: int | None = None
    exists: bool = True


@dataclass(frozen=True)
class Clock:
    """Seconds since the epoch: now, and of the newest file of this package."""

    now: float
    newest: float


@dataclass(frozen=True)
class Store:
    """MLflow's address without its password, and why it would not work."""

    uri: str
    reason: str | None = None
    proxied: bool = False  # then it was not knocked at


@dataclass(frozen=True)
class Lock:
    """A lock that is held: of a device, or of a sweep's folder."""

    name: str
    holder: str


@dataclass(frozen=True)
class Facts:
    """All of it. None: not asked, or not told; then `unknown` may say why, by field."""

    python: tuple[int, int] = (0, 0)
    packages: Mapping[str, Package] = field(default_factory=dict)
    torch: TorchFacts | None = None
    device: DeviceFacts | None = None
    nvml: Nvml = Nvml()
    jetson: Board | None = None  # None off a Jetson
    cpu: Mapping[str, Any] = field(default_factory=dict)  # cpu_model, cpu_features
    share: Share | None = None
    apex: ApexFacts | None = None
    locks: tuple[Lock, ...] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    clock: Clock | None = None
    outputs: Folder | None = None
    caches: Folder | None = None
    store: Store | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)

    @property
    def board(self) -> Mapping[str, Any]:
        """l4t, jetpack and the like; empty off a Jetson."""
        return self.jetson.facts if self.jetson else {}


# --- in workers ---


def look_at_torch(request: None, tell: Any) -> TorchFacts:
    """Versions, as plain strings, and whether torchvision's own operators work with this torch."""
    import torch

    vision, error = None, None
    try:
        import torchvision

        vision = str(torchvision.__version__)
        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception as raised:
        error = classify(raised)[1]
    cudnn = torch.backends.cudnn.version()
    return TorchFacts(
        version=str(torch.__version__),
        cuda=None if torch.version.cuda is None else str(torch.version.cuda),
        cudnn=None if cudnn is None else cuda.cudnn_version(cudnn),
        threads=torch.get_num_threads(),
        torchvision=vision,
        torchvision_error=error,
    )


def look_at_device(request: None, tell: Any) -> DeviceFacts:
    """Every visible GPU with its kernels tried, or the reason why there is none, and the CPU tried."""
    import torch

    reason = cuda.unusable(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = torch.cuda.is_available()
    if not there:
        return DeviceFacts(reason=reason, cpu_error=_convolution("cpu"))
    gpus = tuple(_gpu(index) for index in range(torch.cuda.device_count()))
    return DeviceFacts(gpus, tuple(str(arch) for arch in torch.cuda.get_arch_list()))


def _gpu(index: int) -> Gpu:
    import torch

    facts = torch.cuda.get_device_properties(index)
    uuid = getattr(facts, "uuid", None)  # torch 2.4 and newer
    return Gpu(
        index=index,
        name=str(facts.name),
        capability=(int(facts.major), int(facts.minor)),
        memory_mib=int(facts.total_memory) // 2**20,
        uuid=None if uuid is None else f"GPU-{str(uuid).removeprefix('GPU-')}",
        error=cuda.unusable(index) or _convolution(f"cuda:{index}"),
    )


def _convolution(device: str) -> str | None:
    """What a small convolution and a small product say: a kernel of torch's own proves neither cuDNN nor cuBLAS."""
    import torch

    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    try:
        with torch.inference_mode():
            images = torch.ones(1, 8, 8, 8, device=device, dtype=dtype)
            features = torch.nn.functional.conv2d(images, torch.ones(8, 8, 3, 3, device=device, dtype=dtype))
            (features.flatten(1) @ torch.ones(288, 8, device=device, dtype=dtype)).sum().item()
    except Exception as error:
        return classify(error)[1]
    return None


def ask(server: Server, task: str, timeout_s: float) -> Any:
    """A task's value from a worker, or Broken; also where `import torch` hangs or kills the fork server itself."""
    try:
        return bounded(
            lambda: server.run(f"{__name__}:{task}", None, log=Path(os.devnull), timeout_s=timeout_s), timeout_s + 5
        )
    except TimeoutError:
        return Broken("start", "timeout", f"`import torch` has not ended after {timeout_s + 5:g} s")
    except (EOFError, OSError):
        return Broken("start", "killed", _import_alone("torch", timeout_s))


def _import_alone(module: str, timeout_s: float) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"`import {module}` has not ended after {timeout_s:g} s"
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return killed(done.returncode)[1] if done.returncode < 0 or not said else said[-1].strip()


# --- packages, imported in processes of their own ---

_MARK = "tcsweep-doctor:"
_IMPORT = f"""
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        said = None
    except BaseException as error:
        said = type(error).__name__ + ": " + str(error)
    print({_MARK!r} + json.dumps([name, said]), flush=True)
"""
# Distribution to the module that is imported: one that another project's package of the same name does not have.
MODULES = {"hydra-core": "hydra.core.hydra_config", "omegaconf": "omegaconf", "mlflow": "mlflow"}
NAMESAKES = {"hydra-core": "hydra"}


class Imports:
    """Imports under way in another process, begun early: they take seconds."""

    def __init__(self, *packages: str) -> None:
        self._packages = packages
        modules = [MODULES[name] for name in packages]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _IMPORT, *modules],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **quiet},
        )

    def end(self, timeout_s: float) -> dict[str, Package]:
        """What came of each."""
        try:
            out, _ = self._process.communicate(timeout=timeout_s)
            silent = killed(self._process.returncode)[1].replace("worker", "import")
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, _ = self._process.communicate()
            silent = f"import has not ended after {timeout_s:g} s"
        lines = [line.removeprefix(_MARK) for line in out.splitlines() if line.startswith(_MARK)]
        said: dict[str, str | None] = dict(map(json.loads, lines))
        return {name: _package(name, said.get(MODULES[name], silent)) for name in self._packages}


def _package(name: str, error: str | None) -> Package:
    namesake = NAMESAKES.get(name)
    return Package(_version(name), error and first_line(error), namesake and _version(namesake))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- here ---


def bounded(work: Callable[[], T], timeout_s: float) -> T:
    """The value of work that may hang in a driver or a dead file system; TimeoutError, or what it raised."""
    outcome: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        raise TimeoutError(f"no answer after {timeout_s:g} s")
    value, error = outcome[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def look_at_nvml() -> Nvml:
    """NVML's answers; each may be missing. The load of a Jetson's GPU comes from its own file."""
    nvml = Nvml()
    try:
        import pynvml

        pynvml.nvmlInit()
        nvml = _nvml(pynvml)
    except Exception:  # it is missing, mute or mismatched in more ways than it has errors
        pass
    load = _gpu_load(Path("/"))
    gpus = nvml.gpus if load is None else (NvmlGpu(load_percent=load),)
    return Nvml(nvml.driver or cuda.driver(), nvml.cuda, gpus)


def _nvml(library: Any) -> Nvml:
    number = _told(library.nvmlSystemGetCudaDriverVersion_v2)
    count = _told(library.nvmlDeviceGetCount) or 0
    handles = [_told(library.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
    gpus = [_nvml_gpu(library, handle) for handle in handles if handle is not None]
    return Nvml(
        driver=_text(_told(library.nvmlSystemGetDriverVersion)),
        cuda=None if number is None else f"{number // 1000}.{number % 1000 // 10}",
        gpus=tuple(gpu for gpu in gpus if gpu != NvmlGpu()),
    )


def _nvml_gpu(library: Any, handle: Any) -> NvmlGpu:
    running = _told(library.nvmlDeviceGetComputeRunningProcesses, handle)
    load = _told(library.nvmlDeviceGetUtilizationRates, handle)
    users = None
    if running is not None:
        users = tuple(User(one.pid, _text(_told(library.nvmlSystemGetProcessName, one.pid))) for one in running)
    return NvmlGpu(
        name=_text(_told(library.nvmlDeviceGetName, handle)),
        uuid=_text(_told(library.nvmlDeviceGetUUID, handle)),
        users=users,
        load_percent=None if load is None else float(load.gpu),
    )


def _told(question: Callable[..., Any], *about: Any) -> Any:
    try:
        return question(*about)
    except Exception:
        return None


def _text(value: Any) -> str | None:
    return None if value is None else value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _gpu_load(root: Path) -> float | None:
    for path in GPU_LOAD:
        text = _read(root / path.lstrip("/")).strip()
        if text.isdecimal():
            return int(text) / 10
    return None


def look_at_share(root: Path = Path("/")) -> Share:
    """The processors this process may run on, and the quota of its control groups."""
    return Share(len(os.sched_getaffinity(0)), quota(root, _read(root / "proc/self/cgroup")))


def look_at_locks(table: Path = Path("/proc/net/unix")) -> tuple[Lock, ...]:
    """The locks held in this network namespace, and who holds them."""
    names = lock_names(_read(table))
    return tuple(Lock(name, holder(f"\0tcsweep/{name}")) for name in names)


def lock_names(text: str) -> list[str]:
    """The names in the kernel's table of sockets; one that is waited for stands there more than once."""
    return sorted(set(re.findall(r"\s@tcsweep/(\S+)$", text, re.MULTILINE)))


def look_at_clock() -> Clock:
    """Now, and the newest file of this package: a clock behind it is wrong."""
    files = Path(__file__).parent.rglob("*.py")
    return Clock(time.time(), max(file.stat().st_mtime for file in files))


def look_at_folder(path: Path) -> Folder:
    """Whether a file can be made there, by making one; in the nearest folder that exists, so that nothing is left."""
    shown, there = str(path), os.path.lexists(path)
    try:
        nearest = next(p for p in (path, *path.parents) if os.path.lexists(p))
        with tempfile.TemporaryFile(dir=nearest):
            pass
        return Folder(shown, None, shutil.disk_usage(nearest).free, there)
    except OSError as error:
        return Folder(shown, error.strerror or str(error), exists=there)


def caches() -> Path:
    """Where torch keeps downloaded weights: torch's own rule."""
    if "TORCH_HOME" in os.environ:
        return Path(os.environ["TORCH_HOME"]).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return (Path(base) / "torch").absolute()


def look_at_store() -> Store:
    """The tracking store as a sweep takes it: checked as before a sweep, and knocked at. It makes nothing."""
    target = Target(uri=None, store=Path("outputs").resolve())
    uri = resolved_uri(target)
    return Store(safe_uri(uri), check(target) or unreachable(uri, REACH_S), _proxied(uri))


def _proxied(uri: str) -> bool:
    scheme = uri.partition("://")[0]
    host = urlsplit(split_credentials(uri)[0]).hostname if is_http(uri) else None
    return host is not None and scheme in getproxies() and not proxy_bypass(host)


def look_at_cpu() -> dict[str, Any]:
    """The model and the instructions that decide."""
    return cpu.facts()


def variables(names: Sequence[str] = (*VARIABLES, *OTHER_VARIABLES)) -> dict[str, str]:
    """Those of the environment's variables that matter here."""
    return {name: os.environ[name] for name in names if name in os.environ}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
