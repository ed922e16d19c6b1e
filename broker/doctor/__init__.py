"""Says what of a live broker and of this machine is unsafe, or will break.

`gather` looks, once; each check judges what was found, and changes nothing.
"""
