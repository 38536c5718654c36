"""``registry-drain demo``: a rolling restart under load, stopped the naive way and drained, side by side.

Everything in it is real: processes that serve Thrift, a registry, clients that follow it, and SIGTERM.

- ``command``: the arguments, the course, the verdict
- ``side``: one side of the comparison: a fleet, a load, the restarts
- ``fleet``: the server processes; ``instance``: what each of them runs; ``wire``: their Thrift service;
  ``leftovers``: what has to be taken away afterwards
- ``load``: the clients; ``tally``: what they saw, in numbers; ``progress``: what is shown meanwhile
"""
