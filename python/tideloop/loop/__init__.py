"""The Python half of the event loop.

``EventLoop`` is asyncio's own selector loop with another engine. What runs per callback, per timer and
per packet is native (``tideloop._tideloop``); what runs per connection or per program (resolving names,
racing addresses, servers, executors, signals) is asyncio's, so that it behaves in each Python version
exactly as that version's asyncio does.
"""

from tideloop.loop.event_loop import EventLoop, new_event_loop
from tideloop.loop.hosting import Guest, Outcome, guest
from tideloop.loop.runners import Runner, install, run

__all__ = ["EventLoop", "Guest", "Outcome", "Runner", "guest", "install", "new_event_loop", "run"]
