"""What holds for all tests."""

import os
import signal
from collections.abc import Iterator

import pytest

# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Rates that are measured beside tests are no one's to keep; sweeps of these tests share them."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


def _forget_the_callers_mlflow() -> None:
    names = ("TRACKING_URI", "TRACKING_USERNAME", "TRACKING_PASSWORD", "TRACKING_TOKEN", "ALLOW_FILE_STORE")
    for name in (*(f"MLFLOW_{name}" for name in names), "http_proxy"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def no_settings_of_the_caller() -> None:
    """Before fixtures of a module, too."""
    _forget_the_callers_mlflow()


@pytest.fixture(autouse=True)
def no_settings_of_another_test() -> Iterator[None]:
    """`mlflow.set_tracking_uri` sets a variable that outlives its test."""
    yield
    _forget_the_callers_mlflow()
