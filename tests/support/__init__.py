"""Real servers and real faults for tests and benchmarks.

- :mod:`tests.support.processes`: child processes that are always ended, ``eventually``, ``free_port``
- :mod:`tests.support.consul_process`: ``ConsulAgent``, ``ConsulCluster``
- :mod:`tests.support.zookeeper_process`: ``ZooKeeperServer``
- :mod:`tests.support.tcp_proxy`: ``TcpProxy``, a link that can go wrong in every way
- :mod:`tests.support.tls_files`: a throw-away certificate authority
- :mod:`tests.support.leaks`: threads and processes that a test left behind

Nothing here needs pytest, so that benchmarks use the same parts: ``with ConsulAgent(directory) as agent``.
"""
