"""An echo over persistent connections, on asyncio streams."""
