"""``deregister``: one instance (``deregistration``) or many (``many``, ``bulk``), and whether they come back."""
