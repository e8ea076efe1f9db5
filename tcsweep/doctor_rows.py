"""What `doctor`'s facts mean: pure functions from facts to rows.

fail: no sweep runs here, or not on the GPU that is there. warn: it runs, but something will be missing or slower."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from tcsweep.devices.apex import ApexFacts
from tcsweep.devices.tensor_cores import SHORT, multiplied
from tcsweep.doctor_facts import (
    VARIABLES,
    Clock,
    DeviceFacts,
    Facts,
    Folder,
    Gpu,
    Lock,
    Nvml,
    Package,
    Share,
    Store,
    TorchFacts,
)

Status = Literal["ok", "warn", "fail"]
Version = tuple[int, ...]

PYTHONS = ((3, 10), (3, 13))  # the oldest that works, the newest that was tried
# As in pyproject.toml: from, and before.
NEEDED: dict[str, tuple[Version, Version]] = {
    "hydra-core": ((1, 3, 2), (1, 4)),
    "omegaconf": ((2, 3), (2, 4)),
    "mlflow": ((3, 1), (4,)),
}
TORCH_LEAST: Version = (2, 1)
# Images that bring a torch for the board, by JetPack; older ones have a Python that is too old.
IMAGES = {"6": "nvcr.io/nvidia/pytorch:24.12-py3-igpu", "7": "nvcr.io/nvidia/pytorch:25.08-py3"}
# Tegra: Nano, TX2, Xavier, Orin, Thor (11.0 since CUDA 13, 10.1 before). Code for other GPUs does not run there.
TEGRA = {(5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0)}
NEWER_TORCH_LOST = (7, 5)  # torch from PyPI since 2.8 has nothing for older GPUs
BF16_FEATURES = ("amx_bf16", "avx512_bf16", "bf16")
RELEASED = 1_795_564_800.0  # 2026-11-25: no clock can be right that is behind it
CLOCK_SLACK_S = 86_400.0  # files may carry another time zone's clock
FREE_LEAST = 10**9
LOAD_LEAST = 5.0  # percent of a GPU, from which on a sweep calls it foreign load


@dataclass(frozen=True)
class Row:
    """What was looked at, how it stands, what was found, and what mends it."""

    what: str
    status: Status
    found: str
    mend: str = ""


def rows(facts: Facts) -> list[Row]:
    """Every row. One that cannot be looked at or judged says so, and the others stay."""
    made: list[Row] = []
    for what, field, judge in JUDGES:
        if field in facts.unknown and field not in ("torch", "device"):
            made.append(Row(what, "warn", f"could not be looked at: {facts.unknown[field]}"))
            continue
        try:
            made += judge(facts)
        except Exception as error:
            made.append(Row(what, "warn", f"could not be judged: {type(error).__name__}: {error}"))
    return made


def exit_status(judged: Sequence[Row]) -> int:
    """1 where any row fails."""
    return int(any(row.status == "fail" for row in judged))


def version(text: str | None) -> Version:
    """The leading numbers: `2.6.0a0+df5bbc0.nv24.12` is (2, 6, 0)."""
    found = re.match(r"\d+(\.\d+)*", text or "")
    return tuple(int(n) for n in found[0].split(".")) if found else ()


# --- software ---


def python(found: tuple[int, int]) -> Row:
    """Python's version."""
    text = f"{found[0]}.{found[1]}"
    oldest, newest = (".".join(map(str, v)) for v in PYTHONS)
    if found < PYTHONS[0]:
        return Row("Python", "fail", f"{text}: {oldest} or newer is needed", f"python{oldest} -m venv .venv")
    if found > PYTHONS[1]:
        return Row("Python", "warn", f"{text}: not tried, {newest} is", f"python{newest} -m venv .venv")
    return Row("Python", "ok", text)


def package(name: str, found: Package) -> Row:
    """A package that can be imported in a version that is known to work. Without MLflow a sweep keeps its files."""
    least, before = NEEDED[name]
    wanted = f"{name}>={_dotted(least)},<{_dotted(before)}"
    install = f"pip install {shlex.quote(wanted)}"
    broken: Status = "warn" if name == "mlflow" else "fail"
    if found.namesake is not None and (found.version is None or found.error):
        said = f"another project's `hydra` {found.namesake} is installed" + ("" if found.version else f", not {name}")
        return Row(name, "fail", said, f"pip uninstall -y hydra && {install.replace('install', _AGAIN, 1)}")
    if found.error or found.version is None:
        missing = found.version is None
        said = "not installed" if missing else f"{found.version} cannot be imported: {found.error}"
        return Row(name, broken, said, install if missing else install.replace("install", _AGAIN, 1))
    if not least <= version(found.version) < before:
        return Row(name, "warn" if name == "mlflow" else "fail", f"{found.version}: {wanted} is needed", install)
    if found.namesake is not None:
        said = f"{found.version}, and another project's `hydra` {found.namesake} beside it"
        return Row(name, "warn", said, f"pip uninstall -y hydra && {install.replace('install', _AGAIN, 1)}")
    return Row(name, "ok", found.version)


_AGAIN = "install --force-reinstall"


def _dotted(numbers: Version) -> str:
    return ".".join(map(str, numbers))


def torch(found: TorchFacts | None, reason: str | None, board: Mapping[str, str | None]) -> Row:
    """Whether a worker can import torch; why not, in the import's own words."""
    if found is None:
        said = (reason or "not looked at") + ("; it was built for another JetPack or CUDA" * _misbuilt(reason))
        return Row("torch", "fail", said, _torch_mend(reason or "", board))
    if version(found.version) < TORCH_LEAST:
        said = f"{found.version}: {_dotted(TORCH_LEAST)} or newer is needed"
        return Row("torch", "fail", said, container(board) or "pip install --upgrade torch torchvision")
    return Row("torch", "ok", f"{found.version}, {_built_for(found)}")


def _built_for(found: TorchFacts) -> str:
    return f"built for CUDA {found.cuda}" if found.cuda else "built without CUDA"


def _misbuilt(reason: str | None) -> bool:
    """Whether a library is missing or another one than this torch was linked with."""
    return re.search(r"\.so\b|undefined symbol", reason or "") is not None


def _torch_mend(reason: str, board: Mapping[str, str | None]) -> str:
    missing = "No module named 'torch'" in reason
    return container(board) or f"pip {'install' if missing else _AGAIN} torch torchvision"


def container(board: Mapping[str, str | None]) -> str | None:
    """How to get a torch that was built for this board; None off a Jetson."""
    if not board.get("l4t"):
        return None
    image = IMAGES.get(board.get("jetpack") or "")
    if image is None:
        return "update to JetPack 6: this one's images have no Python 3.10; for the CPU: pip install torch torchvision"
    return f"docker build -t tcsweep --build-arg BASE_IMAGE={image} ."


def torchvision(found: TorchFacts, board: Mapping[str, str | None]) -> Row:
    """Whether torchvision's operators work with this torch, and whether the two are of one release."""
    wanted = pair(found.version)
    shown = found.torchvision or "none"
    mend = container(board) or f"pip install torch=={_plain(found.version)} torchvision{_pin(wanted)}"
    if found.torchvision_error:
        return Row("torchvision", "fail", f"{shown}: {found.torchvision_error}", mend)
    if wanted and version(found.torchvision)[:2] != wanted and not _own_build(found):
        said = f"{shown}, of another release than torch {found.version} ({_dotted(wanted)} is its pair)"
        return Row("torchvision", "warn", said, mend)
    return Row("torchvision", "ok", shown)


def pair(torch_version: str) -> Version | None:
    """torchvision's release for torch's: 0.16 for 2.1, 0.29 for 2.14, one for one."""
    numbers = version(torch_version)
    return (0, numbers[1] + 15) if len(numbers) > 1 and numbers[0] == 2 else None


def _own_build(found: TorchFacts) -> bool:
    """Whether one of them is no release: NVIDIA's images pair development versions in their own way."""
    return any(re.search(r"\d(a|b|rc|\.dev)\d|\+git|\.nv", text or "") for text in (found.version, found.torchvision))


def _plain(text: str) -> str:
    return text.partition("+")[0]


def _pin(wanted: Version | None) -> str:
    return f"=={_dotted(wanted)}.*" if wanted else ""


def apex(found: ApexFacts) -> Row:
    """Which apex there is. None is needed: the twin has the same semantics."""
    twin = "the torch-native twin is used for o0-o3"
    if found.state == "not-nvidia":
        said = f"another project's {f'apex {found.version}' if found.version else 'apex'}: {twin}"
        return Row("apex", "warn", said, "pip uninstall -y apex")
    if found.state == "none":
        return Row("apex", "ok", f"none: {twin}")
    named = " ".join(part for part in ("NVIDIA's", found.version, found.build and f"({found.build})") if part)
    return Row("apex", "ok", f"{named} without amp: {twin}" if found.state == "without-amp" else f"{named} with amp")


# --- devices ---


def device(found: DeviceFacts | None, reason: str | None, nvml: Nvml, facts: Facts) -> list[Row]:
    """The GPU that a sweep takes, or why it takes the CPU."""
    present = list(dict.fromkeys(gpu.name for gpu in nvml.gpus if gpu.name))
    there = ", ".join(present) or (
        f"the GPU of this board (L4T {facts.board['l4t']})" if facts.board.get("l4t") else ""
    )
    if found is None and reason is not None:
        return [Row("device", "fail", reason, "nvidia-smi" if there else "python -c 'import torch; torch.zeros(1)'")]
    if found is None:
        return [Row("device", "warn", f"{there}: not tried without torch")] if there else []
    if found.gpus:
        first, others = found.gpus[0], len(found.gpus) - 1
        memory = f", {first.memory_mib / 1024:.0f} GiB" if first.memory_mib else ""
        more = f"; {others} more" if others else ""
        return [Row("device", "ok", f"{first.name}{memory}{more}")]
    return [_no_gpu(found, there, facts)]


def _no_gpu(found: DeviceFacts, there: str, facts: Facts) -> Row:
    said = f"{found.reason}: a sweep takes the CPU"
    visible = facts.variables.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return Row("device", "warn", said, "unset CUDA_VISIBLE_DEVICES")
    if not there:
        return Row("device", "warn", said, "docker run --gpus all, in a container; else nvidia-smi")
    without_cuda = facts.torch is not None and facts.torch.cuda is None
    mend = "pip install --force-reinstall torch torchvision" if without_cuda else "nvidia-smi"
    return Row("device", "fail", f"{there} is there, but {said}", container(facts.board) or mend)


def driver(nvml: Nvml, torch_cuda: str | None, found: DeviceFacts | None) -> list[Row]:
    """The driver, and whether it is new enough for torch's CUDA, where nothing ran to prove it."""
    if nvml.driver is None:
        return []
    said = nvml.driver + (f", serves CUDA up to {nvml.cuda}" if nvml.cuda else "")
    ran = found is not None and any(gpu.error is None for gpu in found.gpus)
    if not ran and torch_cuda and nvml.cuda and version(nvml.cuda)[0] < version(torch_cuda)[0]:
        major = version(nvml.cuda)[0]
        mend = f"update the driver, or take a torch that was built for CUDA {major}"
        return [Row("driver", "fail", f"{said}: torch wants {torch_cuda}", mend)]
    return [Row("driver", "ok", said)]


def libraries(found: TorchFacts, device: DeviceFacts | None) -> list[Row]:
    """CUDA and cuDNN as torch has them; only where there is a GPU."""
    if device is None or not device.gpus or found.cuda is None:
        return []
    rows = [Row("CUDA", "ok", found.cuda)]
    if found.cudnn is None:
        mend = "pip install --force-reinstall torch torchvision"
        return [*rows, Row("cuDNN", "warn", "none: convolutions run without it, slowly", mend)]
    return [*rows, Row("cuDNN", "ok", found.cudnn)]


def gpus(found: DeviceFacts, board: Mapping[str, str | None]) -> list[Row]:
    """Kernels and tensor cores, once for GPUs that are alike."""
    kinds: dict[tuple[str, tuple[int, int], str | None], Gpu] = {}
    for gpu in found.gpus:
        kinds.setdefault((gpu.name, gpu.capability, gpu.error), gpu)
    made: list[Row] = []
    for gpu in kinds.values():
        name = f" cuda:{gpu.index}" if len(kinds) > 1 else ""
        for row in (kernels(gpu, found.archs, board), tensor_cores(gpu.name, gpu.capability)):
            made.append(Row(row.what + name, row.status, row.found, row.mend))
    return made


def kernels(gpu: Gpu, archs: Sequence[str], board: Mapping[str, str | None]) -> Row:
    """Whether torch was built for this GPU. What ran is the proof; the list of architectures says how, or why not."""
    sm = f"sm_{gpu.capability[0]}{gpu.capability[1]}"
    by = built_for(gpu.capability, archs)
    if gpu.error is None:
        if gpu.capability in TEGRA or by is None:
            return Row("kernels", "ok", f"run on {sm}")
        return Row("kernels", "ok", f"run on {sm}, built for {by}{_jit(by)}")
    said = f"none runs on {sm}: {gpu.error.rpartition('no kernel runs on it: ')[2]}"
    if by is not None and gpu.capability not in TEGRA:
        return Row("kernels", "fail", f"{said}; this torch was built for {by}", "nvidia-smi")
    built = f"; this torch was built for {', '.join(archs)}" if archs else ""
    return Row("kernels", "fail", said + built, container(board) or _other_torch(gpu.capability))


def _jit(by: str) -> str:
    return ", compiled by the driver at first use" if by.startswith("compute") else ""


def _other_torch(capability: tuple[int, int]) -> str:
    if capability < NEWER_TORCH_LOST:
        return "pip install 'torch<2.8' 'torchvision<0.23'"
    return "pip install --upgrade torch torchvision"


def built_for(capability: tuple[int, int], archs: Sequence[str]) -> str | None:
    """The architecture of the list that serves a GPU: machine code of its major version and no higher minor (with `a`
    of this very version, with `f` of its family), else PTX of no higher version, for the driver to compile."""
    codes = [(m[0], m[1], (int(m[2]), int(m[3])), m[4]) for m in map(_ARCH.fullmatch, archs) if m]
    machine = [
        (at, name)
        for name, kind, at, mark in codes
        if kind == "sm" and at[0] == capability[0] and at[1] <= capability[1] and (mark != "a" or at == capability)
    ]
    ptx = [
        (at, name)
        for name, kind, at, mark in codes
        if kind == "compute" and at <= capability and (mark != "a" or at == capability)
        if mark != "f" or at[0] == capability[0]
    ]
    return max(machine or ptx, default=((0, 0), None))[1]


_ARCH = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


def tensor_cores(name: str, capability: tuple[int, int]) -> Row:
    """Whether this GPU has tensor cores, and what they multiply."""
    sm = f"sm_{capability[0]}{capability[1]}"
    found = multiplied(capability, name)
    if not found:
        return Row("tensor cores", "warn", f"none ({sm}): half precision saves memory traffic at most")
    return Row("tensor cores", "ok", f"{', '.join(SHORT.get(d, d) for d in found)} ({sm})")


def cpu(found: Mapping[str, object], device: DeviceFacts | None) -> Row:
    """The processor, and whether it multiplies bfloat16; that matters where a sweep takes it."""
    features = found.get("cpu_features")
    names = tuple(map(str, features)) if isinstance(features, (tuple, list)) else ()
    units = [f for f in BF16_FEATURES if f in names]
    model = str(found.get("cpu_model") or "unknown")
    if device is not None and device.cpu_error:
        mend = "pip install --force-reinstall torch torchvision"
        return Row("CPU", "fail", f"{model}: no kernel runs: {device.cpu_error}", mend)
    if units:
        return Row("CPU", "ok", f"{model}, {', '.join(units)}")
    taken = device is not None and not device.gpus
    return Row("CPU", "warn" if taken else "ok", f"{model}, no bfloat16 unit" + (": o1-o3 gain little" * taken))


def share(found: Share, threads: int | None, omp: str | None) -> Row:
    """Threads against the processors that may be used, and the quota on them."""
    room = found.cpus if found.quota is None else min(found.cpus, max(1, math.ceil(found.quota)))
    said = f"{found.cpus} CPU{'s' * (found.cpus != 1)}, "
    said += "no quota" if found.quota is None else f"a quota of {found.quota:g}"
    if threads is None:
        return Row("threads", "ok", said)
    said = f"{threads} on {said}"
    if threads > room:
        fits = max(1, room if found.quota is None else min(found.cpus, math.floor(found.quota)))
        return Row("threads", "warn", f"{said}: they will wait for each other", f"export OMP_NUM_THREADS={fits}")
    if omp is not None and threads <= room / 2:
        return Row("threads", "warn", f"{said}: OMP_NUM_THREADS={omp} holds the CPU back", "unset OMP_NUM_THREADS")
    return Row("threads", "ok", said)


def _share(facts: Facts, found: Share) -> Row:
    return share(found, facts.torch.threads if facts.torch else None, facts.variables.get("OMP_NUM_THREADS"))


def users(nvml: Nvml, found: DeviceFacts | None) -> list[Row]:
    """Who else is on the GPUs that a sweep sees; where no process is visible, their load."""
    uuids = {gpu.uuid for gpu in found.gpus if gpu.uuid} if found is not None else set()
    seen = [gpu for gpu in nvml.gpus if not uuids or gpu.uuid is None or gpu.uuid in uuids]
    told = [gpu for gpu in seen if gpu.users is not None or gpu.load_percent is not None]
    if not told:
        return []
    others = {user.pid: user.name for gpu in told for user in gpu.users or ()}
    if others:
        named = ", ".join(f"{pid} ({name})" if name else str(pid) for pid, name in others.items())
        mend = f"let it end first; who it is: ps -fp {','.join(map(str, others))}"
        return [Row("GPU users", "warn", f"process {named}", mend)]
    load = max((gpu.load_percent for gpu in told if gpu.load_percent is not None), default=0.0)
    if load >= LOAD_LEAST:
        said = f"none visible from here, yet a load of {load:.0f}%"
        return [Row("GPU users", "warn", said, "let it end first; on the host: nvidia-smi, on a Jetson: tegrastats")]
    return [Row("GPU users", "ok", "none")]


def locks(found: Sequence[Lock]) -> Row:
    """Sweeps that measure now: another on their device waits for them."""
    if not found:
        return Row("locks", "ok", "free")
    by_holder = {lock.holder: [_lock_title(o.name) for o in found if o.holder == lock.holder] for lock in found}
    held = "; ".join(f"{', '.join(titles)}: {holder}" for holder, titles in by_holder.items())
    return Row("locks", "warn", held, "let it end: another sweep waits for it")


def _lock_title(name: str) -> str:
    return "a sweep's folder" if name.startswith("folder/") else f"device {name}"


# --- surroundings ---


def environment(found: Mapping[str, str]) -> Row:
    """Variables that change arithmetic or timing behind a sweep's back."""
    present = [f"{name}={found[name]}" for name in VARIABLES if name in found and not _harmless(name, found[name])]
    if not present:
        return Row("environment", "ok", "nothing that changes arithmetic or timing")
    names = " ".join(word.partition("=")[0] for word in present)
    effect = "every launch waits" if "CUDA_LAUNCH_BLOCKING" in names else "a sweep takes it out for its workers"
    return Row("environment", "warn", f"{', '.join(present)}: {effect}", f"unset {names}")


def _harmless(name: str, value: str) -> bool:
    return name == "CUDA_LAUNCH_BLOCKING" and value != "1"


def clock(found: Clock) -> Row:
    """A board without a battery starts in the past: no certificate is valid then, and results carry false dates."""
    now = datetime.fromtimestamp(found.now, timezone.utc)
    shown = f"{now:%Y-%m-%d %H:%M} UTC"
    mend = "sudo timedatectl set-ntp true, or sudo date -s 'YYYY-MM-DD HH:MM'"
    if found.now < RELEASED:
        return Row("clock", "fail", f"{shown}: before this version was made", mend)
    if found.now < found.newest - CLOCK_SLACK_S:
        newest = datetime.fromtimestamp(found.newest, timezone.utc)
        return Row("clock", "warn", f"{shown}: before this installation ({newest:%Y-%m-%d})", mend)
    return Row("clock", "ok", shown)


def outputs(found: Folder) -> Row:
    """Whether results can be written, and the room for them."""
    if found.error:
        folder = shlex.quote(found.path)
        own = 'sudo chown -R "$(id -u)"' if found.exists else 'sudo install -d -o "$(id -u)"'
        mend = {
            "Permission denied": f"{own} {folder}",
            "Not a directory": f"mv {folder} {shlex.quote(found.path + '.old')}",
        }.get(found.error, "set hydra.sweep.dir=FOLDER, and hydra.run.dir=FOLDER for one job")
        return Row("outputs", "fail", f"cannot write in {found.path}: {found.error}", mend)
    free = found.free_bytes or 0
    if free < FREE_LEAST:
        return Row("outputs", "warn", f"{free / 1e6:.0f} MB free for {found.path}", "df -h . && du -sh outputs")
    return Row("outputs", "ok", f"{free / 1e9:.0f} GB free")


def caches(found: Folder) -> Row:
    """Whether torch can keep weights that it downloads."""
    if found.error:
        said = f"cannot write in {found.path}: {found.error}; model.weights cannot be downloaded"
        return Row("caches", "warn", said, 'export TORCH_HOME="$PWD/.torch"')
    return Row("caches", "ok", found.path)


def store(found: Store, asked: bool) -> Row:
    """MLflow's store. Without it results stay on disk."""
    if not found.reason:
        return Row("MLflow store", "ok", found.uri + (" (behind a proxy: not tried)" if found.proxied else ""))
    command = re.search(r"`([^`]+)`", found.reason)
    another = "unset MLFLOW_TRACKING_URI" if asked else "tracking.uri=sqlite:////FOLDER/mlflow.db"
    said = found.reason.partition("; set ")[0]
    return Row("MLflow store", "warn", f"{said}; results stay on disk", command[1] if command else another)


def _packages(name: str) -> Callable[[Facts], list[Row]]:
    return lambda f: [package(name, f.packages[name])]


def _board(facts: Facts) -> list[Row]:
    from tcsweep import doctor_board  # it needs Row

    return [] if facts.jetson is None else doctor_board.rows(facts.jetson, facts.torch.cuda if facts.torch else None)


# What is looked at, the field of the facts that it needs, and the judge. The order is the table's.
JUDGES: tuple[tuple[str, str, Callable[[Facts], list[Row]]], ...] = (
    ("Python", "python", lambda f: [python(f.python)]),
    ("hydra-core", "hydra", _packages("hydra-core")),
    ("omegaconf", "hydra", _packages("omegaconf")),
    ("mlflow", "mlflow", _packages("mlflow")),
    ("torch", "torch", lambda f: [torch(f.torch, f.unknown.get("torch"), f.board)]),
    ("torchvision", "torch", lambda f: [torchvision(f.torch, f.board)] if f.torch else []),
    ("apex", "apex", lambda f: [apex(f.apex)] if f.apex else []),
    ("Jetson Linux", "jetson", _board),
    ("device", "device", lambda f: device(f.device, f.unknown.get("device"), f.nvml, f)),
    ("driver", "nvml", lambda f: driver(f.nvml, f.torch.cuda if f.torch else None, f.device)),
    ("CUDA", "torch", lambda f: libraries(f.torch, f.device) if f.torch else []),
    ("kernels", "device", lambda f: gpus(f.device, f.board) if f.device else []),
    ("GPU users", "nvml", lambda f: users(f.nvml, f.device)),
    ("CPU", "cpu", lambda f: [cpu(f.cpu, f.device)]),
    ("threads", "share", lambda f: [_share(f, f.share)] if f.share else []),
    ("locks", "locks", lambda f: [locks(f.locks)] if f.locks is not None else []),
    ("environment", "variables", lambda f: [environment(f.variables)]),
    ("clock", "clock", lambda f: [clock(f.clock)] if f.clock else []),
    ("outputs", "outputs", lambda f: [outputs(f.outputs)] if f.outputs else []),
    ("caches", "caches", lambda f: [caches(f.caches)] if f.caches else []),
    ("MLflow store", "store", lambda f: [store(f.store, "MLFLOW_TRACKING_URI" in f.variables)] if f.store else []),
)
