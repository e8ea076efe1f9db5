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

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from tcsweep.catalog import check_device, classifiers, conf_dir, groups, options
from tcsweep.mistakes import Mistake, first_line, unknown, unknown_word
from tcsweep.tracking_uri import redact

# Hydra's flags that take a value (`hydra --help`): what follows them is no override.
_VALUE_FLAGS = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
_VALUE_FLAGS |= {"--shell-completion", "-sc", "--experimental-rerun"}
MULTIRUN_FLAGS = {"-m", "--multirun"}
_RUN_FLAGS = {"-r", "--run"}

# Groups that take values without a file of their own: the field that such a value goes to.
FREE_FIELDS = {"batch": "batch.size", "model": "model.name", "device": "device.name", "power": "power.name"}


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
    recipes = [_recipe(o, line.folders) for o in parsed if _chooses_recipe(o)]
    multirun = _is_multirun(line, parsed, recipes)
    searched = _chosen("hydra/sweeper", parsed, recipes) == "optuna"
    grid = searched and _chosen("hydra/sweeper/sampler", parsed, recipes) == "grid"
    if searched and importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        raise Mistake("a search needs Optuna's sweeper: pip install hydra-optuna-sweeper")
    written: list[str] = []
    for text, override in zip(line.overrides, parsed):
        _check_key(override, keys, line.folders)
        _check_sweep(text, override, multirun, grid)
        _check_folder(text, override, multirun, line.folders)
        written += _write(text, override, line.folders, searched)
    released = _released(recipes, [_parse(text) for text in written]) if multirun else []
    return [*line.flags, *released, *[w for w in written if not _moved_to_environment(w)]]


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
        raise Mistake(redact(f"{text}: {said}{hint}")) from None


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


def _check_sweep(text: str, override: Override, multirun: bool, grid: bool) -> None:
    if override.is_sweep_override() and not multirun:
        raise Mistake(f"{text} is a sweep: add -m")
    if grid and override.is_interval_sweep():
        raise Mistake(f"{text}: a grid takes a list or a range; for an interval set hydra/sweeper/sampler=tpe")


def _check_folder(text: str, override: Override, multirun: bool, folders: Sequence[Path]) -> None:
    """Hydra reads one of its two folders for results and ignores the other, and puts any value into a name."""
    ignored, read = ("hydra.run.dir", "hydra.sweep.dir")[:: 1 if multirun else -1]
    if override.key_or_group not in (ignored, read):
        return
    for group in re.findall(r"\$\{(\w+)\}", text):
        if group in groups(folders) and group != "experiment":
            raise Mistake(f"{text}: {group} is a group of settings, no name: write ${{{group}.{_name_field(group)}}}")
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


def _chooses_recipe(override: Override) -> bool:
    """Whether it is one recipe; of several that are swept, Hydra reads what they say of itself in none."""
    chosen = override.key_or_group == "experiment" and override.value() is not None
    return chosen and not override.is_sweep_override()


def _recipe(override: Override, folders: Sequence[Path]) -> dict[str, Any]:
    name = _values(override)[0]
    _check_option("experiment", name, folders)
    for folder in (*folders, conf_dir()):
        path = folder / "experiment" / f"{name}.yaml"
        if path.is_file():
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
    return {}


def _chosen(group: str, parsed: Sequence[Override], recipes: Sequence[dict[str, Any]]) -> Any:
    """The option of one of Hydra's own groups, as typed or by a recipe; None where neither says."""
    typed = [o.value() for o in parsed if o.key_or_group == group]
    entries = [entry for recipe in recipes for entry in recipe.get("defaults") or [] if isinstance(entry, dict)]
    named = typed or [entry[key] for entry in entries if (key := f"override /{group}") in entry]
    return named[-1] if named else None


def _is_multirun(line: CommandLine, parsed: Sequence[Override], recipes: Sequence[dict[str, Any]]) -> bool:
    """Whether Hydra will sweep: by its flags, else the mode typed, else the recipe's."""
    if (MULTIRUN_FLAGS | _RUN_FLAGS) & set(line.flags):
        return bool(MULTIRUN_FLAGS & set(line.flags))
    typed = [o.value() for o in parsed if o.key_or_group == "hydra.mode"]
    modes = typed or [(recipe.get("hydra") or {}).get("mode") for recipe in recipes]
    return bool(modes) and str(modes[-1]).upper() == "MULTIRUN"


def _released(recipes: Sequence[dict[str, Any]], parsed: Sequence[Override]) -> list[str]:
    """What a recipe sweeps and the user sets too is the user's: the recipe's list is taken out, and what is left of it
    goes to the line, since Hydra cannot take out a key with a dot."""
    typed = {_axis(o.key_or_group) for o in parsed}
    swept: dict[str, Any] = {}
    for recipe in recipes:
        swept |= ((recipe.get("hydra") or {}).get("sweeper") or {}).get("params") or {}
    left = {key: value for key, value in swept.items() if _axis(key) not in typed}
    return [] if left == swept else ["hydra.sweeper.params=null", *[f"{key}={value}" for key, value in left.items()]]


def _name_field(group: str) -> str:
    """The field that says which option of a group it is."""
    return FREE_FIELDS.get(group, f"{group}.name").partition(".")[2]


def _axis(key: str) -> str:
    """What a key chooses: `batch` by batch.size, too."""
    group, _, field = key.lstrip("+").partition(".")
    return group if field == _name_field(group) else key


def is_secret_address(text: str) -> bool:
    """Whether an override is a tracking address with a password in it."""
    return text.lstrip("+").startswith("tracking.uri=") and redact(text) != text


def _moved_to_environment(text: str) -> bool:
    if not is_secret_address(text):
        return False
    os.environ["MLFLOW_TRACKING_URI"] = text.partition("=")[2].strip("'\"")
    return True
