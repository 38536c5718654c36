"""The cluster of ``docker-compose.yml``, used as a person would. Needs a Docker engine: ``make compose-test``."""
