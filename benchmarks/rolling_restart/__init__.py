"""A rolling restart of every kind of server under load: stopped its own way, and drained. See ``__main__``.

``subjects`` are the servers, each a program of its own; ``clients`` speak their protocols; ``load`` is the mix of
clients, ``fleet`` the instances, ``outcome`` what is counted.
"""
