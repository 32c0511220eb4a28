"""A Qt window whose buttons talk to a server, with tideloop as the guest of Qt's event loop.

    python examples/qt_window.py            a window; needs PySide6 or PyQt6
    python examples/qt_window.py --demo     the window types three messages by itself and closes

The server is in the same program, on the same loop, so that nothing else is needed: it answers each line after a
moment, in capitals. While an answer is on its way the window stays alive, and closing it ends everything in order.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import tideloop

try:
    from PySide6 import QtWidgets
except ImportError:
    from PyQt6 import QtWidgets  # type: ignore[no-redef]

DELAY = 0.05
"""Seconds that the server takes for an answer."""


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The server's side of a connection."""
    while line := await reader.readline():
        await asyncio.sleep(DELAY)
        writer.write(line.upper())
        await writer.drain()
    writer.close()
    await writer.wait_closed()


class Window(QtWidgets.QWidget):
    """A line to type in, a button, and what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.setWindowTitle("tideloop in Qt")
        self.line = QtWidgets.QLineEdit()
        self.button = QtWidgets.QPushButton("Send")
        self.log = QtWidgets.QPlainTextEdit(readOnly=True)
        layout = QtWidgets.QVBoxLayout(self)
        for widget in (self.log, self.line, self.button):
            layout.addWidget(widget)
        self.typed: asyncio.Queue[str] = asyncio.Queue()
        # A slot is Qt's code: it runs between two steps of our loop, and may schedule on it what it likes.
        self.button.clicked.connect(self.send)
        self.line.returnPressed.connect(self.send)

    def send(self) -> None:
        self.typed.put_nowait(self.line.text())
        self.line.clear()

    def show_line(self, text: str) -> None:
        self.log.appendPlainText(text)
        print(text, flush=True)


async def converse(window: Window, address: Any) -> None:
    """Sends what is typed and shows what comes back, until it is cancelled."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        while True:
            text = await window.typed.get()
            window.show_line(f"sent      {text}")
            writer.write(text.encode() + b"\n")
            window.show_line(f"received  {(await reader.readline()).decode().strip()}")
    finally:
        # The window is closed; the connection is ended properly all the same.
        writer.close()
        await writer.wait_closed()
        print("connection closed", flush=True)


async def type_by_itself(window: Window) -> None:
    for text in ("hello", "from a window", "goodbye"):
        window.line.setText(text)
        window.button.click()
        await asyncio.sleep(2 * DELAY)
    window.close()


async def main(window: Window, demo: bool) -> None:
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server, asyncio.TaskGroup() as group:
        if demo:
            group.create_task(type_by_itself(window))
        group.create_task(converse(window, server.sockets[0].getsockname()))


if __name__ == "__main__":
    app = QtWidgets.QApplication(sys.argv)
    window = Window()
    window.show()
    # In place of app.exec(): closing the window quits the application, and with that cancels main.
    sys.exit(tideloop.qt.run(main(window, "--demo" in sys.argv), app))
