"""The stop: its order, its budget, its observers. Whatever it stops, it knows by protocol only.

``phases`` is the table of the order, ``budget`` splits the time, ``bounded`` calls what may hang, ``observers`` are
told, ``routine`` does it all, ``events`` and ``report`` say what happened, ``signals`` and ``watchdog`` tie it to the
process.
"""
