"""A Jupyter kernel whose loop is tideloop: `tideloop run -m ipykernel_launcher`, spoken to as a notebook does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import sys

import pytest

from tests.real import peers

peers.package("ipykernel")
kernelspec = peers.package("jupyter_client.kernelspec")
manager = peers.package("jupyter_client.manager")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A client of a kernel that runs as a process of its own."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "tide").mkdir()
    command = [sys.executable, "-m", "tideloop", "run", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    # From 3.14 on asyncio's policies, through which a program's default loop is set, are deprecated.
    spec = {"argv": command, "display_name": "tide", "language": "python", "env": {"IPYTHONDIR": str(folder)}}
    (folder / "tide" / "kernel.json").write_text(json.dumps(spec))
    kernels = manager.KernelManager(
        kernel_name="tide", kernel_spec_manager=kernelspec.KernelSpecManager(kernel_dirs=[str(folder)])
    )
    kernels.start_kernel(cwd=str(peers.ROOT))
    client = kernels.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=peers.PATIENCE)
        yield client
    finally:
        client.stop_channels()
        kernels.shutdown_kernel(now=False)
        kernels.cleanup_resources()


def execute(kernel, code):
    """Runs a cell; its printed text, the text of its value, and its error or None."""
    printed, value, error = [], None, None
    identity = kernel.execute(code)
    while True:
        message = kernel.get_iopub_msg(timeout=peers.PATIENCE)
        if message["parent_header"].get("msg_id") != identity:
            continue
        content = message["content"]
        match message["msg_type"]:
            case "stream":
                printed.append(content["text"])
            case "execute_result":
                value = content["data"]["text/plain"]
            case "error":
                error = content["ename"]
            case "status" if content["execution_state"] == "idle":
                break
    with contextlib.suppress(queue.Empty):
        kernel.get_shell_msg(timeout=peers.PATIENCE)
    return "".join(printed), value, error


@pytest.mark.limit(60)
def test_top_level_await_on_tideloop(kernel):
    kinds = execute(kernel, "import asyncio; type(asyncio.get_running_loop())")
    assert kinds == ("", "tideloop.loop.event_loop.EventLoop", None)
    assert execute(kernel, "await asyncio.sleep(0.001, 42)") == ("", "42", None)
    cell = """
async def answer(reader, writer):
    writer.write((await reader.read(100)).upper())
    writer.close()
    await writer.wait_closed()
server = await asyncio.start_server(answer, "127.0.0.1", 0)
"""
    assert execute(kernel, cell) == ("", None, None)
    # A task goes on between cells, on the loop that also serves the kernel.
    cell = """
reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
writer.write(b"cell")
task = asyncio.create_task(reader.read())
"""
    assert execute(kernel, cell) == ("", None, None)
    assert execute(kernel, "print((await task).decode()); writer.close(); server.close()") == ("CELL\n", None, None)


@pytest.mark.limit(60)
def test_errors_and_timeouts_in_cells(kernel):
    assert execute(kernel, "await asyncio.wait_for(asyncio.Event().wait(), 0.01)")[2] == "TimeoutError"
    assert execute(kernel, "1 / 0")[2] == "ZeroDivisionError"
    assert execute(kernel, "await asyncio.gather(*(asyncio.sleep(0, n) for n in range(5)))")[1] == "[0, 1, 2, 3, 4]"


@pytest.mark.limit(60)
def test_running_a_loop_inside_the_running_loop_is_refused(kernel):
    cell = "import tideloop\ntry:\n    tideloop.run(asyncio.sleep(0))\nexcept RuntimeError as error:\n    print(error)"
    printed, _, error = execute(kernel, cell)
    assert error is None
    assert printed == "tideloop.run() cannot be called from a running event loop\n"


def test_ipythons_own_running_loop():
    """IPython without a kernel: `%autoawait` with our loop."""
    ipython = peers.package("IPython.core.interactiveshell")
    import tideloop

    def on_tideloop(coroutine):
        return tideloop.run(coroutine)

    shell = ipython.InteractiveShell.instance()
    try:
        shell.loop_runner = on_tideloop
        shell.autoawait = True
        result = shell.run_cell("import asyncio\nawait asyncio.sleep(0, type(asyncio.get_running_loop()).__module__)")
        assert result.success, result.error_in_exec
        assert result.result == "tideloop.loop.event_loop"
        assert asyncio._get_running_loop() is None
    finally:
        ipython.InteractiveShell.clear_instance()
