"""Speed claims, each a program that prints a ratio against a baseline in the same run: ``python -m benchmarks.NAME``.

The exit status is 1 if the goal named at the top of the file is missed.
"""
