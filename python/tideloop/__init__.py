"""tideloop: an async runtime for Python with its core in Rust.

``tideloop.run(main())`` instead of ``asyncio.run(main())``, or ``tideloop run app.py`` without an edit.
"""

from tideloop.loop import EventLoop, Runner, install, new_event_loop, run

__all__ = ["EventLoop", "Runner", "install", "new_event_loop", "run"]
