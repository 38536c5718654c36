"""For your own tests: a clock that makes waiting take no time, a registry with faults, contract suites for backends and
adapters.
"""
