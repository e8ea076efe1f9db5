#!/usr/bin/env bash
# A Jetson's container without a Jetson or Docker: a 64-bit Arm root with a torch of its own (emulated, where this machine
# is none), our Dockerfile built on it, and a sweep of two precisions in it on a fake AGX Orin. Times mean nothing there.
#
#   apt-get install buildah debootstrap qemu-user-static binfmt-support python3-pip     (Debian 12 or later)
#   tests/jetson/standin.sh [folder, 10 GB]     as root; half an hour at first, then what is there is kept
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mkdir -p "${1:-/tmp/tcsweep-standin}" && cd "${1:-/tmp/tcsweep-standin}" && pwd)
python=${PYTHON:-python3}
user=1234 # the host's user, who is to own the results
base=localhost/tcsweep-standin-base image=localhost/tcsweep-standin
export BUILDAH_ISOLATION=chroot

step() { echo "== $(date +%H:%M:%S) $*"; }
fail() {
    echo "standin.sh: $*" >&2
    exit 1
}

arm_root() {
    [ -e "$work/root.done" ] && return
    if [ "$(uname -m)" != aarch64 ]; then
        mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
        update-binfmts --enable qemu-aarch64
    fi
    step "a 64-bit Arm root"
    rm -rf "$work/root"
    debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,python3-pip,ca-certificates bookworm "$work/root"
    chroot "$work/root" /debootstrap/debootstrap --second-stage
    touch "$work/root.done"
}

own_torch() {
    [ -e "$work/torch.done" ] && return
    step "its own torch"
    # Without the CUDA libraries that its metadata asks for: nothing here has a GPU.
    "$python" -m pip install --quiet --no-deps --only-binary=:all: --python-version 3.11 \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
        --target "$work/root/usr/local/lib/python3.11/dist-packages" \
        torch==2.9.1 torchvision==0.24.1 numpy==1.26.4 pillow filelock typing_extensions sympy==1.13.3 mpmath==1.3.0 \
        networkx==3.3 jinja2 MarkupSafe fsspec
    cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/" # a network's own, too
    touch "$work/torch.done"
}

base_image() {
    buildah inspect --type image "$base" >/dev/null 2>&1 && return
    step "the base image"
    local container
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$work/root" / >/dev/null
    buildah config --arch arm64 --env PIP_CERT=/etc/ssl/certs/ca-certificates.crt "$container"
    buildah commit --quiet "$container" "$base" >/dev/null
    buildah rm "$container" >/dev/null
}

# Version and a hash of the files of the image's torch.
torch_of() {
    local container
    container=$(buildah from --pull-never "$1")
    (cd "$(buildah mount "$container")/usr/local/lib/python3.11/dist-packages" &&
        find torch torch-*.dist-info torchvision numpy -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum)
    buildah rm "$container" >/dev/null
}

build() {
    step "our Dockerfile on it"
    buildah bud --quiet --pull-never --arch arm64 --build-arg BASE_IMAGE="$base" --build-arg UID="$user" -t "$image" "$repository"
}

refuse_an_old_python() {
    step "an old Python is refused in a line"
    local said
    said=$("$python" -c "
import sys; sys.path.insert(0, '$repository/scripts')
from check_image import complaint
print(complaint((3, 8), None))")
    [[ $said == "error: this image's Python is 3.8, and tcsweep needs 3.10 or newer: "* ]] || fail "$said"
}

sweep() {
    step "a sweep in it, as user $user"
    local container board=$work/board outputs=$work/outputs
    rm -rf "$board" "$outputs" && mkdir -p "$outputs"
    (cd "$repository" && "$python" -c "
from pathlib import Path
from tests import boards
boards.board(Path('$board'), 'agx_orin_r35')")
    chown -R "$user" "$board" "$outputs"
    container=$(buildah from --pull-never "$image")
    buildah config --volume /home/tcsweep/outputs- "$container" # which hides a mount from buildah, not from docker
    # On the CPU, emulated: timings are short, deadlines long.
    buildah run --user tcsweep --env TCSWEEP_BOARD_ROOT="$board" --env PATH="$board/bin:/usr/local/bin:/usr/bin:/bin" \
        --env USER=tcsweep --env HOME=/home/tcsweep \
        --volume "$board:$board" --volume "$outputs:/home/tcsweep/outputs" "$container" -- \
        sh -c 'uname -m; id -u; python3 -m tcsweep -m precision=fp32,bf16 batch=1 model=resnet18 \
            model.image_size=32 device=cpu measure=quick measure.timed_s_min=1 measure.timed_s_max=3 \
            measure.warmup_s_min=0 measure.warmup_s_max=1 measure.latency_s_max=1 measure.timeout_s=1800'
    buildah rm "$container" >/dev/null
}

check() {
    step "what it left"
    "$python" - "$work/outputs" "$user" <<'EOF'
import json, pathlib, sys

outputs, user = pathlib.Path(sys.argv[1]), int(sys.argv[2])
files = [f for f in outputs.rglob("*") if f.is_file()]
strangers = [str(f) for f in files if f.stat().st_uid != user]
assert files and not strangers, f"not of the host's user: {strangers}"
results = {r["job"]["precision"]: r for r in (json.loads(f.read_text()) for f in outputs.rglob("result.json"))}
assert results.keys() == {"fp32", "bf16"}, results.keys()
for name, result in results.items():
    assert result["status"] == "ok", result
    environment, state = result["environment"], result["rounds"][0]["device_state"]
    seen = {n: environment[n] for n in ("module", "l4t", "jetpack", "soc", "power_mode", "shared_memory")}
    assert seen == {
        "module": "NVIDIA Jetson AGX Orin", "l4t": "35.3.1", "jetpack": "5", "soc": "tegra234", "power_mode": "MAXN (0)",
        "shared_memory": True,
    }, seen
    assert environment["torch"].startswith("2.9.1"), environment
    rails = state["samples"][0]["rails_w"]
    assert len(rails) > 3, state
    print(name, seen, state["power_of"], rails)
EOF
}

[ "$(id -u)" = 0 ] || fail "run it as root: debootstrap and the mounts need it"
for tool in buildah debootstrap; do
    command -v "$tool" >/dev/null || fail "there is no $tool: apt-get install buildah debootstrap qemu-user-static binfmt-support"
done
refuse_an_old_python
arm_root
own_torch
base_image
before=$(torch_of "$base")
build
[ "$before" = "$(torch_of "$image")" ] || fail "the build changed the base's torch, torchvision or numpy"
step "torch, torchvision and numpy are the base's own, to the byte"
sweep
check
step "all as it is to be"
