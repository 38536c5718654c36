"""The stop, on a clock that stands still while anybody works."""
