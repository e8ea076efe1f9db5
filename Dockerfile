# tcsweep on an image that brings torch, torchvision and numpy built for its device: those stay as they are.
# Jetson, JetPack 6: the default. Thor, and other GPUs: --build-arg BASE_IMAGE=nvcr.io/nvidia/pytorch:25.08-py3 or another.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:24.12-py3-igpu
FROM ${BASE_IMAGE}

COPY . /opt/tcsweep
RUN PIP_NO_CACHE_DIR=1 python /opt/tcsweep/scripts/install_in_image.py

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
ENTRYPOINT ["python", "-m", "tcsweep"]
