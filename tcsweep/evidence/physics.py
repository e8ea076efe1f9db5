"""What arithmetic and memory bound, from counted work. Pure; no torch."""

from __future__ import annotations

from tcsweep.evidence.facts import LayerWork, Work

# F(4x4, 3x3) makes 16 outputs of 9 multiply-adds each from 36 products (Lavin and Gray, "Fast Algorithms for
# Convolutional Neural Networks", 2015, arXiv:1509.09308).
WINOGRAD_SAVING = 4.0


def flops_for_bound(work: Work, winograd_possible: bool, fft_possible: bool = False) -> float:
    """The least operations an image that an implementation may really do: counted ones, those of layers that Winograd
    could do divided by 4, and nothing of those that an FFT could do: what it needs depends on tiles that no name tells.
    Raises ValueError for work that could not be counted."""
    return sum(_least(layer, winograd_possible, fft_possible) for layer in _counted(work))


def _least(layer: LayerWork, winograd_possible: bool, fft_possible: bool) -> float:
    if fft_possible and layer.spatial:
        return 0.0
    return layer.flops / WINOGRAD_SAVING if winograd_possible and layer.winograd else layer.flops


def layerwise_roof_img_s(work: Work, batch: int, element_bytes: float, flops_s: float, bytes_s: float) -> float:
    """Images a second if each layer took the longer of its traffic and its arithmetic (the roofline of Williams,
    Waterman and Patterson, 2009, layer by layer), and nothing else took time.

    `element_bytes` is the size of one activation or weight, `flops_s` in FLOP/s, `bytes_s` in bytes/s, read and
    written together. Activations move once an image, weights once a batch. A yardstick and no bound: fusing across
    layers, Winograd or data that stays in a cache may beat it.
    Raises ValueError for work that could not be counted and for arguments that are not positive.
    """
    if not (batch > 0 and element_bytes > 0 and flops_s > 0 and bytes_s > 0):
        raise ValueError(f"must be positive: {batch=}, {element_bytes=}, {flops_s=}, {bytes_s=}")
    return 1 / sum(layer_s(layer, batch, element_bytes, flops_s, bytes_s) for layer in _counted(work))


def layer_s(layer: LayerWork, batch: int, element_bytes: float, flops_s: float, bytes_s: float) -> float:
    """Seconds an image of one layer: the longer of its traffic and its arithmetic; arguments as above."""
    elements = layer.input_elements + layer.output_elements + layer.weight_elements / batch
    return max(elements * element_bytes / bytes_s, layer.flops / flops_s)


def _counted(work: Work) -> tuple[LayerWork, ...]:
    if not work.layers:
        raise ValueError(f"no layers were counted: {work.missing or 'the model has none that do arithmetic'}")
    return work.layers
