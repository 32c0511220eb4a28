"""What tests of asynchronous programs need: loops on a virtual clock, and a plugin for pytest.

    loop = tideloop.testing.new_virtual_loop()
    loop.run_until_complete(main())        # hours of sleeping take no time, and twice the same

`tideloop.testing.plugin` is what pytest loads by itself where tideloop is installed; docs/testing.md says what it
offers. Nothing of tideloop itself imports this package, and importing it imports no event loop.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tideloop.testing.clock import VirtualClock
    from tideloop.testing.virtual_time import VirtualAsyncioLoop, VirtualLoop, new_virtual_loop

__all__ = ["VirtualAsyncioLoop", "VirtualClock", "VirtualLoop", "new_virtual_loop"]


def __getattr__(name: str) -> object:
    """Import what is asked for when it is first asked for: pytest imports this package in every run."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tideloop.testing import clock, virtual_time

    value = globals()[name] = getattr(clock if name == "VirtualClock" else virtual_time, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
