from __future__ import annotations

import pytest

from tcsweep.mistakes import Mistake, unknown, unknown_word

PRECISIONS = ["fp32", "tf32", "fp16", "bf16"]
ALLOWED = "Allowed: fp32, tf32, fp16, bf16"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("fp61", f"precision=fp61 is unknown; did you mean fp16? {ALLOWED}"),
        ("FP16", f"precision=FP16 is unknown; did you mean fp16? {ALLOWED}"),
        (" fp16", f"precision=' fp16' is unknown; did you mean fp16? {ALLOWED}"),
        ("fp16\n", f"precision='fp16\\n' is unknown; did you mean fp16? {ALLOWED}"),
        ("", f"precision='' is unknown. {ALLOWED}"),
        ("quick", f"precision=quick is unknown. {ALLOWED}"),
    ],
)
def test_an_unknown_value_is_said_with_the_nearest_match_and_what_is_allowed(value: str, text: str) -> None:
    mistake = unknown("precision", value, iter(PRECISIONS))
    assert (type(mistake), str(mistake)) == (Mistake, text)


def test_the_match_is_spelt_as_it_is_allowed() -> None:
    assert (
        str(unknown("weights", "imagenet1k_v1", ["IMAGENET1K_V1", "DEFAULT"]))
        == "weights=imagenet1k_v1 is unknown; did you mean IMAGENET1K_V1? Allowed: IMAGENET1K_V1, DEFAULT"
    )


def test_an_unknown_word_is_no_value() -> None:
    assert (
        str(unknown_word("key", "modle", ["model", "batch"]))
        == "unknown key modle; did you mean model? Allowed: model, batch"
    )


@pytest.mark.parametrize(("count", "end"), [(24, "m23"), (25, "m23 and 1 more"), (80, "m23 and 56 more")])
def test_a_long_list_is_cut_after_24(count: int, end: str) -> None:
    text = str(unknown("model", "x", (f"m{n}" for n in range(count))))
    assert text == f"model=x is unknown. Allowed: {', '.join(f'm{n}' for n in range(23))}, {end}"


def test_the_match_may_lie_behind_the_cut() -> None:
    names = [f"m{n}" for n in range(30)] + ["wide_resnet"]
    text = str(unknown("model", "wide_resnt", names))
    assert text.startswith("model=wide_resnt is unknown; did you mean wide_resnet? Allowed: m0, ")


def test_a_mistake_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="unknown key a"):
        raise unknown_word("key", "a", ["b"])


def test_a_mistake_is_one_line_whatever_was_typed() -> None:
    assert str(unknown("precision", "fp\n16", ["fp16"])).splitlines() == [
        "precision='fp\\n16' is unknown; did you mean fp16? Allowed: fp16"
    ]
