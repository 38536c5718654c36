"""The stop: its order, its budget, its observers. Whatever it stops, it knows by protocol only.

``budget`` splits the time, ``pace`` waits, ``bounded`` calls what may hang, ``observers`` are told. ``leaving`` takes
the instance out of its clusters, ``draining`` empties the server, ``routine`` does both in their order. ``events`` and
``report`` say what happened, ``signals`` and ``watchdog`` tie it to the process.
"""
