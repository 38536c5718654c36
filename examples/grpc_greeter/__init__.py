"""A gRPC service that loses no call when it is restarted, and a client that follows the registry.

The messages are plain bytes, so that nothing has to be generated; with generated code ``add_…_to_server`` takes the
place of ``add_generic_rpc_handlers``.
"""
