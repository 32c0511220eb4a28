"""What tests of asynchronous programs need: loops on a virtual clock.

    loop = tideloop.testing.new_virtual_loop()
    loop.run_until_complete(main())        # hours of sleeping take no time, and twice the same

Nothing of tideloop itself imports this package.
"""

from tideloop.testing.virtual_time import VirtualAsyncioLoop, VirtualLoop, new_virtual_loop

__all__ = ["VirtualAsyncioLoop", "VirtualLoop", "new_virtual_loop"]
