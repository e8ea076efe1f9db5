"""The command line before Hydra reads it: what its grammar refuses is put right, and mistakes are found at once.

Hydra cannot take an integer as a group option (`batch=1,8,32`), nor a name that has no file (`model=inception_v3`,
`device=cuda:1`): such values go to the group's own field instead.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from tcsweep.catalog import check_device, classifiers, conf_dir, groups, options
from tcsweep.mistakes import Mistake, first_line, unknown, unknown_word

# Hydra's flags that take a value (`hydra --help`): what follows them is no override.
_VALUE_FLAGS = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
_VALUE_FLAGS |= {"--shell-completion", "-sc", "--experimental-rerun"}
_MULTIRUN_FLAGS = {"-m", "--multirun"}

# Groups that take values without a file of their own: the field that such a value goes to.
FREE_FIELDS = {"batch": "batch.size", "model": "model.name", "device": "device.name"}


@dataclass(frozen=True)
class CommandLine:
    """Hydra's flags apart from the overrides, so that their order on the line does not matter."""

    flags: tuple[str, ...]
    overrides: tuple[str, ...]

    @property
    def folders(self) -> tuple[Path, ...]:
        """The user's own config folder, if one is given."""
        pairs = zip(self.flags, self.flags[1:])
        joined = [f.partition("=")[2] for f in self.flags if f.startswith("--config-dir=")]
        return tuple(Path(v) for v in joined + [v for f, v in pairs if f in ("--config-dir", "-cd")])


def split(argv: Sequence[str]) -> CommandLine:
    """Tell flags and overrides apart; a bare word that is neither raises Mistake."""
    flags: list[str] = []
    overrides: list[str] = []
    words = iter(argv)
    for word in words:
        if word in _VALUE_FLAGS:
            flags += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif (
            word in ("--info", "-i") or word.startswith("-") or (flags[-1:] in (["--info"], ["-i"]) and "=" not in word)
        ):
            flags.append(word)
        elif "=" in word or word.startswith("~"):
            overrides.append(word)
        else:
            raise Mistake(
                f"{word!r} is neither a command nor an override: overrides are written GROUP=OPTION, see --help"
            )
    return CommandLine(tuple(flags), tuple(overrides))


def rewrite(argv: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The command line as Hydra can take it. Raises Mistake, one line, for what can never be right. `keys` are the
    schema's. A tracking address that holds a password moves to the environment: Hydra saves overrides."""
    line = split(argv)
    for folder in line.folders:
        if not folder.is_dir():
            raise Mistake(f"--config-dir {folder}: no such folder")
    parsed = [_parse(text) for text in line.overrides]
    recipes = [_recipe(o, line.folders) for o in parsed if o.key_or_group == "experiment" and o.value() is not None]
    multirun = bool(_MULTIRUN_FLAGS & set(line.flags)) or any(_is_multirun(r) for r in recipes)
    multirun = multirun or any(o.key_or_group == "hydra.mode" and str(o.value()).upper() == "MULTIRUN" for o in parsed)
    searched = _is_searched(parsed, recipes)
    if searched and importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        raise Mistake("a search needs Optuna's sweeper: pip install hydra-optuna-sweeper")
    written: list[str] = []
    for text, override in zip(line.overrides, parsed):
        _check_key(override, keys, line.folders)
        _check_sweep(text, override, multirun)
        _check_folder(text, override, multirun)
        written += _write(text, override, line.folders, searched)
    written += _released(recipes, [_parse(text) for text in written])
    return [*line.flags, *[w for w in written if not _moved_to_environment(w)]]


def _parse(text: str) -> Override:
    if re.search(r"=\s*$", text) and not text.startswith("~"):
        raise Mistake(f"{text}: a value is missing after '='")
    if re.search(r"=\s*,|,\s*,|,\s*$", text) and not re.search(r"['\"]", text):
        raise Mistake(f"{text}: an empty value between commas")
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        said = first_line(str(error)) or "not an override"
        hint = "" if text.isascii() else f"; quote it: {text.partition('=')[0]}='\"...\"'"
        raise Mistake(f"{text}: {said}{hint}") from None


def _check_key(override: Override, keys: Sequence[str], folders: Sequence[Path]) -> None:
    key = override.key_or_group
    if key.split(".")[0].split("/")[0] == "hydra" or override.is_force_add() or override.is_delete():
        return
    if override.is_add() and key in groups(folders) and key in keys:
        raise Mistake(f"{override.input_line}: {key} is set already; change it without the plus")
    allowed = [*keys, *(g for g in groups(folders) if g not in keys)]
    if override.is_add() and key not in ("experiment", *keys):
        return  # Hydra adds it, and the schema says whether it may
    if key not in allowed:
        raise unknown_word("key", key, [k for k in allowed if ("." in k) == ("." in key)])


def _check_sweep(text: str, override: Override, multirun: bool) -> None:
    if override.is_sweep_override() and not multirun:
        raise Mistake(f"{text} is a sweep: add -m")


def _check_folder(text: str, override: Override, multirun: bool) -> None:
    """Hydra reads one of its two folders for results and ignores the other."""
    ignored, read = ("hydra.run.dir", "hydra.sweep.dir")[:: 1 if multirun else -1]
    if override.key_or_group == ignored:
        kind = "a sweep" if multirun else "a single run"
        raise Mistake(f"{text}: the folder of {kind} is {read}={text.partition('=')[2]}")


def _write(text: str, override: Override, folders: Sequence[Path], searched: bool) -> list[str]:
    key = override.key_or_group
    if key not in groups(folders) or override.is_delete():
        return [text]
    if key == "experiment":
        for value in _values(override):
            _check_option(key, value, folders)
        return [text if text.startswith("+") else f"+{text}"]
    values = _values(override)
    if key in FREE_FIELDS:
        return _free(key, values, override, folders, searched)
    for value in values:
        _check_option(key, value, folders)
    return [text]


def _free(group: str, values: list[str], override: Override, folders: Sequence[Path], searched: bool) -> list[str]:
    """Options with a file stay options, quoted, since Hydra refuses integers; otherwise all go to the field. Optuna's
    sweeper takes the quotes away again, so there numbers go to the field, too."""
    for value in values:
        _check_free(group, value, override, folders)
    known = options(group, folders)
    prefix = "+" if override.is_add() else ""
    if all(v in known and not (searched and v.isdecimal()) for v in values):
        return [f"{prefix}{group}=" + ",".join(_quoted(v) for v in values)]
    listed = ",".join(v if v.isdecimal() else _quoted(v) for v in values)
    return [*(["model=torchvision"] if group == "model" else []), f"{FREE_FIELDS[group]}={listed}"]


def _check_free(group: str, value: str, override: Override, folders: Sequence[Path]) -> None:
    if value in options(group, folders):
        return
    if group == "batch" and not re.fullmatch(r"[1-9]\d*", value):
        said = f"{override.input_line}: {value!r} is not a whole number of 1 or more"
        raise Mistake(f"{said}; several as a comma list, batch=1,8,32")
    if group == "model" and value not in classifiers():
        own = [n for n in options("model", folders) if n not in (*classifiers(), "torchvision")]
        raise unknown("model", value, [*own, *classifiers()])
    if group == "device":
        check_device(value)


def _check_option(group: str, value: str, folders: Sequence[Path]) -> None:
    if value not in options(group, folders):
        raise unknown(group, value, options(group, folders))


def _values(override: Override) -> list[str]:
    """The values of a group's override as text, a range counted out."""
    value: Any = override._value
    if isinstance(value, ChoiceSweep):
        return [_text(v, override) for v in value.list]
    if isinstance(value, RangeSweep):
        return _counted(value, override)
    return [_text(value, override)]


def _counted(sweep: RangeSweep, override: Override) -> list[str]:
    numbers = (sweep.start, sweep.stop, sweep.step)
    if not all(isinstance(n, int) for n in numbers) or sweep.step == 0:
        raise Mistake(f"{override.input_line}: range takes whole numbers, range(START, STOP, STEP), STOP not included")
    counted = [str(n) for n in range(*numbers)]  # type: ignore[arg-type]
    if not counted:
        raise Mistake(f"{override.input_line}: the range is empty (STOP is not included)")
    return counted


def _text(value: Any, override: Override) -> str:
    if isinstance(value, (list, dict)):
        key = override.key_or_group
        raise Mistake(f"{override.input_line}: a list or dictionary is one value; sweep with a comma list, {key}=A,B")
    if value is None:
        return "null"
    return str(value.text) if isinstance(value, QuotedString) else str(value)


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _recipe(override: Override, folders: Sequence[Path]) -> dict[str, Any]:
    name = _values(override)[0]
    _check_option("experiment", name, folders)
    for folder in (*folders, conf_dir()):
        path = folder / "experiment" / f"{name}.yaml"
        if path.is_file():
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
    return {}


def _is_searched(parsed: Sequence[Override], recipes: Sequence[dict[str, Any]]) -> bool:
    """Whether Optuna's sweeper is chosen, on the line or by a recipe."""
    typed = [o.value() for o in parsed if o.key_or_group == "hydra/sweeper"]
    if typed:
        return typed[-1] == "optuna"
    defaults = [entry for recipe in recipes for entry in recipe.get("defaults") or [] if isinstance(entry, dict)]
    return any(entry.get("override /hydra/sweeper") == "optuna" for entry in defaults)


def _is_multirun(recipe: dict[str, Any]) -> bool:
    return str((recipe.get("hydra") or {}).get("mode", "")).upper() == "MULTIRUN"


def _released(recipes: Sequence[dict[str, Any]], parsed: Sequence[Override]) -> list[str]:
    """What a recipe sweeps and the user sets too is the user's: the recipe's own list is taken out."""
    typed = {o.key_or_group for o in parsed}
    swept: set[str] = set()
    for recipe in recipes:
        swept |= set(((recipe.get("hydra") or {}).get("sweeper") or {}).get("params") or {})
    # A key with a dot cannot be taken out; Optuna's sweeper takes the last word of a key, which is the user's.
    return [f"~hydra.sweeper.params.{key}" for key in sorted(typed & swept) if "." not in key]


def _moved_to_environment(text: str) -> bool:
    key, _, uri = text.partition("=")
    uri = uri.strip("'\"")
    if key.lstrip("+") != "tracking.uri" or not urlsplit(uri).password:
        return False
    os.environ["MLFLOW_TRACKING_URI"] = uri
    return True
