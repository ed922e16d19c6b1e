"""The content of packages: archives, and files on a disk. Both programs use it."""
