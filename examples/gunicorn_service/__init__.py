"""A WSGI service under gunicorn that leaves its registry before it stops. See ``gunicorn.conf.py``."""
