"""Check a broker and this machine for what is unsafe or will fail.

`gather` collects the data once; each check judges it. Nothing is changed.
"""
