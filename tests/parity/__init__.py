"""One body per behaviour, run on asyncio, uvloop and tideloop."""
