"""What could not be delivered or read, and what an administrator does with it."""
