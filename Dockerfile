# tcsweep on an image that brings torch, torchvision and numpy built for its device: those stay as they are.
# Jetson, JetPack 6: the default. Others, by --build-arg BASE_IMAGE=...: docs/containers.md has the table.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:24.12-py3-igpu
FROM ${BASE_IMAGE}

# A tag of NVIDIA's apex, 25.05, for an image that has none with apex.amp; without it the torch-native twin runs.
ARG APEX=
# A version of JupyterLab, for an image that has none.
ARG JUPYTER=

COPY . /opt/tcsweep
RUN python3 /opt/tcsweep/scripts/check_image.py \
    && PIP_NO_CACHE_DIR=1 python3 /opt/tcsweep/scripts/install_in_image.py --apex "${APEX}" --jupyter "${JUPYTER}"

# Who owns the results outside: --build-arg UID="$(id -u)". Non-unique, since Ubuntu 24.04 has a user of its own at 1000;
# in `video`, to whom a Jetson's device files belong.
ARG UID=1000
RUN useradd --create-home --non-unique --uid "${UID}" --groups video tcsweep \
    && install --directory --owner tcsweep --group tcsweep /home/tcsweep/outputs
# By name, not number: only so is the group `video` its own.
# hadolint ignore=DL3066
USER tcsweep
WORKDIR /home/tcsweep
VOLUME ["/home/tcsweep/outputs"]
ENTRYPOINT ["python3", "-m", "tcsweep"]
