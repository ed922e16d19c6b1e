"""What packages are on the workstations, and how to uninstall them."""
