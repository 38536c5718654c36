"""One ASGI application, run by each server in each way.

    python -m examples.asgi_service.serve_uvicorn       # we run uvicorn
    python -m examples.asgi_service.serve_hypercorn     # we run hypercorn
    uvicorn examples.asgi_service.hosted:service --port 8000 --workers 4       # uvicorn runs us
    granian --interface asgi --loop asyncio --port 8000 --workers 4 examples.asgi_service.hosted:service
    hypercorn --workers 0 --bind 127.0.0.1:8000 examples.asgi_service.hosted:service

Settings come from the environment: ``REGISTRY`` (default: a local one in /tmp), ``PORT`` (8000). Stop any of them with
SIGTERM or Ctrl-C, and read the report.
"""
