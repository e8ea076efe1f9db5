import pytest

from tcsweep.evidence.facts import LayerWork, Work
from tcsweep.evidence.physics import flops_for_bound, layerwise_roof_img_s

CONVOLUTION = LayerWork("conv", "convolution", 4000.0, 100, 200, 50, winograd=True)
LINEAR = LayerWork("fc", "linear", 600.0, 10, 20, 6000)
POOLING = LayerWork("pool", "pooling", 0.0, 200, 50, 0)
WORK = Work((CONVOLUTION, POOLING, LINEAR))


def test_winograd_layers_count_a_quarter_where_winograd_is_possible():
    assert flops_for_bound(WORK, winograd_possible=True) == 1600.0
    assert flops_for_bound(WORK, winograd_possible=False) == 4600.0 == WORK.flops


def test_layers_that_an_fft_could_do_do_not_count_where_one_is_possible():
    spatial = LayerWork("conv", "convolution", 4000.0, 100, 200, 50, winograd=True, spatial=True)
    work = Work((spatial, POOLING, LINEAR))
    assert flops_for_bound(work, winograd_possible=True, fft_possible=True) == 600.0
    assert flops_for_bound(work, winograd_possible=True) == 1600.0


@pytest.mark.parametrize(
    ("flops_s", "seconds"),
    [
        (1e9, 300 * 2 + 250 * 2 + 30 * 2),  # arithmetic takes no time: traffic alone
        (1.0, 4000 + 500 + 600),  # the convolution and the linear layer are held up by arithmetic, pooling is not
        (10.0, 600 + 500 + 60),  # each layer by its own: 400 against 600, 60 against 60
        (5.0, 800 + 500 + 120),
    ],
)
def test_each_layer_takes_the_longer_of_its_traffic_and_its_arithmetic(flops_s, seconds):
    roof = layerwise_roof_img_s(
        Work((CONVOLUTION, POOLING, LINEAR)), batch=10**12, element_bytes=2, flops_s=flops_s, bytes_s=1.0
    )

    assert roof == pytest.approx(1 / seconds, rel=1e-6)


def test_weights_are_read_once_a_batch():
    at = {
        batch: 1 / layerwise_roof_img_s(Work((LINEAR,)), batch=batch, element_bytes=4, flops_s=1e12, bytes_s=1.0)
        for batch in (1, 100)
    }

    assert at == pytest.approx({1: (30 + 6000) * 4, 100: (30 + 60) * 4})


@pytest.mark.parametrize("argument", ["batch", "element_bytes", "flops_s", "bytes_s"])
def test_arguments_that_are_not_positive_are_errors(argument):
    good = {"batch": 1, "element_bytes": 2, "flops_s": 1.0, "bytes_s": 1.0}
    with pytest.raises(ValueError, match=f"must be positive: .*{argument}=0"):
        layerwise_roof_img_s(WORK, **(good | {argument: 0}))


@pytest.mark.parametrize(
    ("work", "said"), [(Work(missing="no such model"), "no such model"), (Work(), "the model has none")]
)
def test_work_that_was_not_counted_bounds_nothing(work, said):
    with pytest.raises(ValueError, match=f"no layers were counted: {said}"):
        flops_for_bound(work, winograd_possible=True)
    with pytest.raises(ValueError, match=f"no layers were counted: {said}"):
        layerwise_roof_img_s(work, batch=1, element_bytes=2, flops_s=1.0, bytes_s=1.0)
