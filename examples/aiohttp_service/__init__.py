"""An aiohttp service, drained."""
