"""Running somebody else's program on tideloop: ``tideloop run``.

The program runs in this process as ``__main__``, as ``python script.py`` or ``python -m module`` would
run it; only the default event loop is another. An uncaught exception is shown without our own frames.
Child processes that the program starts run what they would run without us.
"""

from __future__ import annotations

import atexit
import importlib.machinery
import os
import runpy
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path

from tideloop.loop.runners import use_everywhere

__all__ = ["main"]

_OURS = {__file__, runpy.__file__, "<frozen runpy>"}


def main(argv: list[str]) -> int:
    """Run a script or a module with its arguments; SystemExit passes through to the interpreter.

    ``--accelerate`` before them puts native primitives in the place of asyncio's first; ``--observe`` and
    ``--observe-web`` let others ask what its loops do.
    """
    asked = _Asked()
    while argv[:1] and asked.takes(argv[0]):
        argv = argv[1:]
    if asked.complaint:
        return _usage(asked.complaint)
    match argv:
        case ["-h" | "--help"]:
            print(
                "usage: tideloop run [options] script.py [args ...]\n"
                "       tideloop run [options] -m module [args ...]\n\n"
                "  --accelerate          native primitives in the place of asyncio's, too\n"
                "  --observe             tideloop top, tasks, web, … may look at it from outside\n"
                "  --observe-web[=PORT]  the same, with a web page on 127.0.0.1"
            )
            return 0
        case ["-m", module, *arguments]:
            return _run(lambda: _run_module(module, arguments), asked, module)
        case ["-m"]:
            return _usage("-m needs a module's name")
        case [option, *_] if option.startswith("-"):
            return _usage(f"no option {option!r}; expected a script, or -m and a module")
        case [script, *arguments]:
            try:
                with open(script, "rb"):
                    pass
            except IsADirectoryError:
                pass
            except OSError as error:
                return _usage(f"can't open file {script!r}: {error.strerror}")
            return _run(lambda: _run_script(script, arguments), asked, os.path.basename(script))
    return _usage("expected a script, or -m and a module")


def _usage(complaint: str) -> int:
    print(f"tideloop run: {complaint}", file=sys.stderr)
    return 2


class _Asked:
    """The options of ``tideloop run``."""

    def __init__(self) -> None:
        self.accelerate = False
        self.observe = False
        self.web: bool | int = False
        self.complaint: str | None = None

    def takes(self, option: str) -> bool:
        """Whether it is one of them."""
        name, _, port = option.partition("=")
        if option == "--accelerate":
            self.accelerate = True
        elif option == "--observe":
            self.observe = True
        elif name == "--observe-web":
            self.observe = self.web = True
            if port or option.endswith("="):
                from tideloop.observe.serving import port_of

                try:
                    self.web = port_of(port, name)
                except ValueError as error:
                    self.complaint = str(error)
        else:
            return False
        return True

    def obey(self, program: str) -> str | None:
        """Do what was asked for; returns why it cannot be done."""
        if self.accelerate:
            from tideloop.acceleration import accelerate

            accelerate()  # for as long as the process lives, threads that outlive the program included
        if not self.observe:
            return None
        from tideloop.observe.places import has_sockets
        from tideloop.observe.serving import announce, serve

        try:
            # Where there are no UNIX sockets, a page that is asked for is served all the same.
            server = serve(has_sockets() or self.web is False, self.web, program=program)
        except (OSError, NotImplementedError) as error:
            return f"--observe: {error}"
        announce(server)
        return None


def _run(program: Callable[[], None], asked: _Asked, name: str) -> int:
    interrupted: list[KeyboardInterrupt] = []
    # Before anything of the program's, so that it is called after all of that.
    atexit.register(_end_by_signal, interrupted)
    complaint = asked.obey(name)
    if complaint is not None:
        return _usage(complaint)
    use_everywhere()
    try:
        program()
    except SystemExit:
        raise
    except BaseException as error:
        error.__traceback__ = _without_our_frames(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt) and os.name == "posix":
            interrupted.append(error)
        return 1
    return 0


def _end_by_signal(interrupted: list[KeyboardInterrupt]) -> None:
    """As python itself ends, after what the program does at its end: a shell sees an interrupted program."""
    if interrupted:
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _without_our_frames(traceback: types.TracebackType | None) -> types.TracebackType | None:
    first = traceback
    while first is not None and first.tb_frame.f_code.co_filename in _OURS:
        first = first.tb_next
    return first


def _set_path(first: str) -> None:
    if sys.flags.safe_path:
        return
    sys.path[0] = first


def _run_script(script: str, arguments: list[str]) -> None:
    sys.argv = [script, *arguments]
    if Path(script).is_dir() or (not script.endswith((".py", ".pyw")) and _is_zip(script)):
        _set_path(script)
        runpy.run_path(script, run_name="__main__")
        return
    _set_path(str(Path(script).resolve().parent))
    script = os.path.abspath(script)
    loader = importlib.machinery.SourceFileLoader("__main__", script)
    main_module = types.ModuleType("__main__")
    main_module.__dict__.update(
        __file__=script, __loader__=loader, __spec__=None, __package__=None, __builtins__=__builtins__
    )
    code = compile(loader.get_data(script), script, "exec", dont_inherit=True)
    sys.modules["__main__"] = main_module
    exec(code, main_module.__dict__)


def _is_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _run_module(module: str, arguments: list[str]) -> None:
    sys.argv = [module, *arguments]
    _set_path(os.getcwd())
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ImportError as error:
        # Raised by runpy itself, not by the program: there is no such module to run.
        if _without_our_frames(error.__traceback__) is None:
            print(f"{sys.executable}: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        raise
