"""A Thrift service that loses no request when it is restarted, and a client that follows the registry.

``calculator/`` is what the Thrift compiler makes of ``calculator.thrift``.
"""
