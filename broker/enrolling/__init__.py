"""How agents come by broker users and queues that an administrator made."""
