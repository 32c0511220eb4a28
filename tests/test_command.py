"""The ``tideloop`` command: it runs programs as python does, and complains in one line."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
import asyncio, atexit, os, signal, sys

async def main():
    print(type(asyncio.get_running_loop()).__module__.partition(".")[0], *sys.argv[1:])
    match sys.argv[1:]:
        case ["exit"]:
            sys.exit(7)
        case ["raise"]:
            raise ValueError("as asked")
        case ["interrupt"]:
            atexit.register(print, "the end")
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    return path


def python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=30, **options)


def tideloop(*arguments, **options):
    return python("-m", "tideloop", *arguments, **options)


def test_a_script_runs_unedited_on_tideloop(program):
    done = tideloop("run", str(program), "a", "--b")
    assert (done.returncode, done.stdout, done.stderr) == (0, "tideloop a --b\n", "")


def test_a_module_runs_unedited_on_tideloop(program):
    done = tideloop("run", "-m", "program", "-m", cwd=program.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "tideloop -m\n", "")


def test_the_exit_code_is_the_programs(program):
    assert tideloop("run", str(program), "exit").returncode == 7


@pytest.mark.parametrize("how", ["raise", "interrupt"])
def test_tracebacks_and_endings_are_those_of_python(program, how):
    ours, theirs = tideloop("run", program.name, how, cwd=program.parent), python(program.name, how, cwd=program.parent)
    assert ours.returncode == theirs.returncode

    def frames(stderr):
        lines = stderr.splitlines()
        return [line for line in lines if not ("asyncio" in line or "tideloop" in line or set(line) <= set(" ^~"))]

    mine = [line for line in frames(theirs.stderr) if str(program) in line or not line.startswith(" ")]
    assert [line for line in frames(ours.stderr) if str(program) in line or not line.startswith(" ")] == mine
    assert "program.py" in ours.stderr
    assert os.path.join("tideloop", "program.py") not in ours.stderr, "our own frames are not shown"


@pytest.mark.skipif(os.name != "posix", reason="signals as exit codes are UNIX's")
def test_an_interrupted_program_ends_by_the_signal(program):
    ended = tideloop("run", str(program), "interrupt")
    assert ended.returncode == -signal.SIGINT
    assert ended.stdout.splitlines()[-1] == "the end", "what the program does at its end is done before"


def test_a_syntax_error_is_shown_as_python_shows_it(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def f(:\n")
    assert tideloop("run", str(path)).stderr == python(str(path)).stderr


def test_main_is_the_program_for_those_who_look(tmp_path):
    path = tmp_path / "looks.py"
    path.write_text("import sys\nprint(sys.modules['__main__'].__file__, sys.path[0], __name__)\n")
    assert tideloop("run", str(path)).stdout == python(str(path)).stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "usage"),
        (
            ["nonsense"],
            "no command 'nonsense'; expected run, lab, top, tasks, blocked, doctor, flame, record, web, --help",
        ),
        (["run"], "expected a script, or -m and a module"),
        (["run", "-m"], "-m needs a module's name"),
        (["run", "--fast", "x.py"], "no option '--fast'; expected a script, or -m and a module"),
        (["run", "no/such/file.py"], "can't open file 'no/such/file.py': No such file or directory"),
    ],
)
def test_wrong_usage_is_told_without_a_traceback(arguments, complaint):
    done = tideloop(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_an_absent_module_is_told_as_python_tells_it():
    ours, theirs = tideloop("run", "-m", "no_such_module"), python("-m", "no_such_module")
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)


def test_help_and_version():
    assert "tideloop run [--accelerate] script.py" in tideloop("--help").stdout
    assert tideloop("--version").stdout.startswith("tideloop ")


def test_importing_tideloop_brings_nothing_heavy():
    code = (
        "import asyncio, sys; before = set(sys.modules); import tideloop; "
        "print(*[m for m in set(sys.modules) - before if not m.startswith('tideloop')])"
    )
    # asyncio brings typing itself before Python 3.14.
    assert set(python("-c", code).stdout.split()) <= {"__future__", "typing", "_typing"}
