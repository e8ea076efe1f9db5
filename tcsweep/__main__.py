"""The command line. A single run is a sweep of one; mistakes are one line and exit status 2."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tcsweep.mistakes import Interrupted, Mistake, cannot_write, first_line, unknown_word

# Flags of Hydra that show something and measure nothing.
ASKING_FLAGS = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}


def main() -> None:
    """Run the command line and exit with its status."""
    argv = sys.argv[1:]
    try:
        status = _command(argv)
    except Mistake as error:
        print(f"tcsweep: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:  # `tcsweep --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush below does not fail again
        status = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("tcsweep: interrupted", file=sys.stderr)
        status = 130
    except Interrupted:
        print("tcsweep: terminated", file=sys.stderr)
        status = 143
    sys.stdout.flush()
    gc.freeze()  # the interpreter's last collection would go through all of MLflow's modules for a second
    sys.exit(status)


def _command(argv: Sequence[str]) -> int:
    if argv and not argv[0].startswith(("-", "+", "~")) and "=" not in argv[0]:
        if argv[0] not in COMMANDS:
            raise unknown_word("command", argv[0], COMMANDS)
        return COMMANDS[argv[0]](list(argv[1:]))
    return _hydra(argv)


def _hydra(argv: Sequence[str]) -> int:
    """Let Hydra compose the sweep; its errors become our one line."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from tcsweep import catalog, config, overrides, resume, session
    from tcsweep.worker import Server

    resuming, others = resume.split(argv)
    argv = list(argv) if resuming is None else _gone_back_to(resuming, others)
    session.begin(argv, resuming)
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises instead of printing and exiting with 1
    config.register()

    mistakes: list[Mistake] = []  # not raised through Hydra, which would print a line of its own first

    def task(composed: DictConfig) -> None:
        from tcsweep import app

        os.chdir(HydraConfig.get().runtime.cwd)  # hydra.job.chdir moves nothing of ours: one store, paths as typed
        try:
            app.measure(app.load([composed]), Path(HydraConfig.get().runtime.output_dir))
        except Mistake as error:
            mistakes.append(error)
        except OSError as error:
            if session.EXIT_STATUS:
                raise
            mistakes.append(_cannot_write(error))

    sys.argv[1:] = overrides.rewrite(argv, config.keys())
    if resuming is None:
        for named in resume.named_folders(argv):
            resume.refuse_taken(Path(named).absolute())  # before Hydra writes a file of its own there
    else:
        sys.argv += resume.folder_words(resuming)
    if not ASKING_FLAGS & set(argv):
        Server().start()  # it imports torch while Hydra composes
    try:
        hydra.main(version_base="1.3", config_path=str(catalog.conf_dir()), config_name="config")(task)()
    except (HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        raise Mistake(_explained(error)) from None
    except OSError as error:
        if session.EXIT_STATUS or isinstance(error, BrokenPipeError):
            raise
        # Hydra makes the folders itself, before anything of ours runs.
        raise _cannot_write(error) from None
    if mistakes:
        raise mistakes[0]
    for search in session.SEARCHES:
        search.tell()
    return max(session.EXIT_STATUS, default=0)


def _gone_back_to(folder: Path, others: Sequence[str]) -> list[str]:
    """The command line of a sweep to go on with, in the folder that it was started in."""
    from tcsweep import resume

    words = resume.words(folder, others)
    if (origin := resume.origin(folder)) is not None:
        for remark in (resume.go_back(origin), resume.forgotten(origin, words)):
            if remark:
                print(f"tcsweep: {remark}", file=sys.stderr)
    return words


def _cannot_write(error: OSError) -> Mistake:
    """The folder that an error is about: Hydra's multirun.yaml, and our temporary files, lie in the sweep's."""
    path = Path(error.filename or "outputs")
    return cannot_write(path.parent if path.name.startswith((".", "multirun.yaml")) else path, error)


def _explained(error: BaseException) -> str:
    """Hydra's and OmegaConf's errors in one line: what was said, and which key."""
    cause = error.__cause__ if error.__cause__ is not None and str(error.__cause__) else None
    said = first_line(str(error)) or type(error).__name__
    if cause is not None and first_line(str(cause)) not in said:
        said = f"{said.rstrip('.')}: {first_line(str(cause))}"
    key = getattr(error, "full_key", None) or getattr(cause, "full_key", None)
    return f"{said} (key: {key})" if key and key not in said else said


def _sync(arguments: list[str]) -> int:
    """Send saved sweeps to MLflow."""
    from tcsweep import sync

    return sync.main(arguments)


def _ui(arguments: list[str]) -> int:
    """MLflow's pages."""
    from tcsweep import ui

    return ui.main(arguments)


def _doctor(arguments: list[str]) -> int:
    """Look at this machine."""
    from tcsweep import doctor

    return doctor.main(arguments)


def _audit(arguments: list[str]) -> int:
    """Saved results checked again."""
    from tcsweep import audit

    return audit.main(arguments)


def _report(arguments: list[str]) -> int:
    from tcsweep.report.again import main

    return main(arguments)


def _compare(arguments: list[str]) -> int:
    from tcsweep.compare import main

    return main(arguments)


def _layers(arguments: list[str]) -> int:
    """Each layer, and whether it uses tensor cores."""
    from tcsweep import layers

    return layers.main(arguments)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "sync": _sync,
    "ui": _ui,
    "doctor": _doctor,
    "audit": _audit,
    "compare": _compare,
    "report": _report,
    "layers": _layers,
}

if __name__ == "__main__":
    main()
