import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tcsweep.devices.apex import ApexFacts, find_apex

PYPI = "from pyramid.session import UnencryptedCookieSessionFactoryConfig\n"
POISONS = {
    "raises": "raise ImportError('poisoned')\n",
    "exits": "import sys\nsys.exit(1)\n",
    "hangs": "import time\ntime.sleep(60)\n",
}
AMP = ("amp/__init__.py", "amp/frontend.py")
NVIDIA = ("contrib/__init__.py", "normalization/__init__.py", "multi_tensor_apply/__init__.py")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder, first on the path of an interpreter that has not imported any apex."""
    for name in [n for n in sys.modules if n == "amp_C" or n.split(".")[0] == "apex"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def package(site: Path, text: str = "", files: tuple[str, ...] = (), metadata: str | None = None) -> str:
    for name in ("__init__.py", *files):
        file = site / "apex" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text if name == "__init__.py" else "raise SystemExit(1)\n")
    if metadata is not None:
        folder = site / f"apex-{metadata}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: apex\nVersion: {metadata}\n")
    importlib.invalidate_caches()
    return str(site / "apex")


def test_no_apex_at_all(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "apex", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    assert find_apex() == ApexFacts("none", None, None, None)


def test_a_bare_folder_named_apex_is_no_apex(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "apex", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "apex" / "apex").mkdir(parents=True)

    assert find_apex() == ApexFacts("none", None, None, None)


def test_nvidias_apex_with_amp_has_the_version_of_its_metadata(site):
    path = package(site, "import torch\n", (*NVIDIA, *AMP), metadata="0.1")

    assert find_apex() == ApexFacts("amp", "0.1", "python-only", path)


def test_the_full_build_is_told_by_its_extension_without_importing_it(site):
    path = package(site, "import torch\n", (*NVIDIA, *AMP))
    (site / "amp_C.py").write_text("raise SystemExit(1)\n")

    assert find_apex() == ApexFacts("amp", None, "full", path)
    assert "amp_C" not in sys.modules


def test_nvidias_apex_after_25_05_is_without_amp(site):
    path = package(site, "import torch\n", NVIDIA)

    assert find_apex() == ApexFacts("without-amp", None, "python-only", path)


def test_a_stub_that_says_its_version_and_nothing_else_is_without_amp(site):
    path = package(site, "__version__ = '0.1'\n")

    assert find_apex() == ApexFacts("without-amp", "0.1", "python-only", path)


def test_pypis_apex_is_known_by_its_text(site):
    path = package(site, PYPI)

    assert find_apex() == ApexFacts("not-nvidia", None, None, path)


def test_pypis_apex_is_known_by_its_metadata(site):
    path = package(site, "", metadata="0.9.10.dev0")

    assert find_apex() == ApexFacts("not-nvidia", "0.9.10.dev0", None, path)


def test_another_package_named_apex_is_not_nvidias(site):
    path = package(site, "", ("web.py",))

    assert find_apex() == ApexFacts("not-nvidia", None, None, path)


def test_a_single_module_named_apex_is_not_nvidias(site):
    (site / "apex.py").write_text("__version__ = '3'\n")

    assert find_apex() == ApexFacts("not-nvidia", "3", None, str(site / "apex.py"))


def test_metadata_of_a_hidden_apex_is_not_taken_for_the_one_in_front(site, monkeypatch):
    behind = site / "behind"
    behind.mkdir()
    package(behind, PYPI, metadata="0.9.10.dev0")
    front = site / "front"
    front.mkdir()
    path = package(front, "__version__ = '0.1'\n")
    monkeypatch.syspath_prepend(str(behind))
    monkeypatch.syspath_prepend(str(front))

    assert find_apex() == ApexFacts("without-amp", "0.1", "python-only", path)


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize(("files", "state"), [((), "without-amp"), (NVIDIA, "without-amp"), ((*NVIDIA, *AMP), "amp")])
def test_a_poisoned_apex_is_looked_at_and_never_imported(site, poison, files, state):
    path = package(site, poison, files)

    assert find_apex() == ApexFacts(state, None, "python-only", path)
    assert "apex" not in sys.modules


def test_a_finder_that_fails_gives_no_apex(site, monkeypatch):
    class Broken:
        @staticmethod
        def find_spec(name, path=None, target=None):
            raise RuntimeError("broken finder")

    monkeypatch.setattr(sys, "meta_path", [Broken])

    assert find_apex() == ApexFacts("none", None, None, None)


def test_looking_for_apex_costs_no_torch():
    code = "import sys; from tcsweep.devices.apex import find_apex; find_apex(); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout == "False\n"
