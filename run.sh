#!/usr/bin/env bash
# tcsweep in its container, with the flags that this machine needs.
#
#   ./run.sh build [docker build arguments]   build the image tcsweep, on the base image for this machine
#   ./run.sh notebook [arguments]             JupyterLab with the notebook, at a loopback address, with a token
#   ./run.sh ui                               the MLflow UI on the results, at a loopback address
#   ./run.sh doctor | -m batch=1,8 | ...      any tcsweep command; results land in ./outputs, owned by you
#   ./run.sh --dry-run ...                    print the docker command, and run nothing
#
# IMAGE (tcsweep), BASE_IMAGE, PORT (8888, the notebook's), DOCKER_ARGS (more for docker run, split at spaces).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${TCSWEEP_BOARD_ROOT:-} # another root of the device's files, for tests
image=${IMAGE:-tcsweep}
outputs=$PWD/outputs
dry=

die() {
    echo "run.sh: $*" >&2
    exit 2
}

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
}

is_jetson() {
    [ -f "$root/etc/nv_tegra_release" ] || grep -qs 'nvidia,tegra' "$root/proc/device-tree/compatible"
}

# 35 on JetPack 5; nothing where there is no such file.
l4t_major() {
    sed -n 's/^# R\([0-9]\{1,\}\) .*/\1/p' "$root/etc/nv_tegra_release" 2>/dev/null || true
}

base_image() {
    if [ -n "${BASE_IMAGE:-}" ]; then
        echo "$BASE_IMAGE"
        return
    fi
    case $(is_jetson && l4t_major) in
    36) echo nvcr.io/nvidia/pytorch:24.12-py3-igpu ;;
    38 | 39) echo nvcr.io/nvidia/pytorch:25.08-py3 ;;
    '')
        is_jetson && die "this Jetson's release cannot be read: set BASE_IMAGE, see docs/containers.md"
        echo nvcr.io/nvidia/pytorch:24.12-py3
        ;;
    *) die "no image is known for this Jetson's release with Python >= 3.10: set BASE_IMAGE, see docs/containers.md" ;;
    esac
}

check_docker() {
    local version
    command -v docker >/dev/null || die "there is no docker here: https://docs.docker.com/engine/install"
    version=$(docker version --format '{{.Client.Version}}' 2>/dev/null | head -n 1) || true
    # 19.03 is the first with --gpus.
    [ -z "$version" ] || printf '19.03\n%s\n' "$version" | sort -CV || die "docker is $version, and 19.03 or newer is needed"
}

# What is run, as it could be typed again.
show_or_run() {
    if [ -n "$dry" ]; then
        printf '%q ' "$@" | sed 's/ $//'
        echo
    else
        exec "$@"
    fi
}

device_flags() {
    local group file
    if is_jetson; then
        flags+=(--runtime nvidia)
        for group in video render jtop; do
            group=$(getent group "$group" | cut -d: -f3) && [ -n "$group" ] && flags+=(--group-add "$group")
        done
        for file in /etc/nv_tegra_release /etc/nvpmodel.conf /var/lib/nvpmodel /run/jtop.sock; do
            [ -e "$root$file" ] || continue
            [ "$file" = /run/jtop.sock ] && flags+=(-v "$root$file:$file") || flags+=(-v "$root$file:$file:ro")
        done
        # Docker hides /sys/firmware, where /proc/device-tree leads: a copy takes its place.
        if [ -z "$dry" ]; then
            mkdir -p "$outputs/.board"
            for file in model compatible; do
                cp "$root/proc/device-tree/$file" "$outputs/.board/" 2>/dev/null || true
            done
        fi
        flags+=(-v "$outputs/.board:/run/host/device-tree:ro")
    elif command -v nvidia-smi >/dev/null; then
        flags+=(--gpus all)
    fi
}

run() {
    local name uid=${SUDO_UID:-$(id -u)} gid=${SUDO_GID:-$(id -g)}
    [ -n "$dry" ] || mkdir -p "$outputs"
    flags=(--rm --init --ipc=host --network host)
    [ -t 0 ] && [ -t 1 ] && flags+=(-it)
    device_flags
    # root would own the results: then the image's own user stays.
    [ "$uid" = 0 ] || flags+=(--user "$uid:$gid" -e HOME=/tmp -e "USER=tcsweep" -e XDG_CACHE_HOME=/home/tcsweep/outputs/.cache)
    flags+=(-v "$outputs:/home/tcsweep/outputs")
    # By name alone: a password is in no process's arguments.
    for name in MLFLOW_TRACKING_URI MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN JUPYTER_TOKEN; do
        [ -z "${!name:-}" ] || flags+=(-e "$name")
    done
    # shellcheck disable=SC2206  # split on purpose
    flags+=(${DOCKER_ARGS:-})
    show_or_run docker run "${flags[@]}" "${mounts[@]}" "$image" "$@"
}

notebook() {
    local port=${PORT:-8888} address
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        port=$((port + 1)) # somebody listens there
    done
    JUPYTER_TOKEN=${JUPYTER_TOKEN:-$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')}
    export JUPYTER_TOKEN
    address="http://127.0.0.1:$port/lab/tree/tcsweep.ipynb?token=$JUPYTER_TOKEN"
    echo "JupyterLab: $address"
    echo "from another machine: ssh -L $port:127.0.0.1:$port $(id -un)@$(hostname), then that address there"
    mounts=(-v "$here/notebooks:/home/tcsweep/notebooks" --entrypoint python3)
    run -m jupyterlab --ip 127.0.0.1 --port "$port" --ServerApp.port_retries=0 --no-browser \
        --ServerApp.root_dir=/home/tcsweep/notebooks "$@"
}

mounts=()
if [ "${1:-}" = --dry-run ]; then
    dry=yes
    shift
fi
case ${1:-} in
'' | -h | --help)
    usage
    exit 0
    ;;
esac
[ -n "$dry" ] || check_docker
case $1 in
build)
    shift
    base=$(base_image)
    show_or_run docker build --build-arg "BASE_IMAGE=$base" --build-arg "UID=${SUDO_UID:-$(id -u)}" -t "$image" "$@" "$here"
    ;;
notebook)
    shift
    notebook "$@"
    ;;
*) run "$@" ;;
esac
