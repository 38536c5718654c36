"""The tests. Whatever needs a real server says so by its fixtures; see conftest.py."""
