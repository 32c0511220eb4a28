"""tideloop: an async runtime for Python with its core in Rust.

``tideloop.run(main())`` instead of ``asyncio.run(main())``, or ``tideloop run app.py`` without an edit.
"""

from tideloop import qt
from tideloop.loop import EventLoop, Guest, Outcome, Runner, guest, install, new_event_loop, run

__all__ = ["EventLoop", "Guest", "Outcome", "Runner", "guest", "install", "new_event_loop", "qt", "run"]
