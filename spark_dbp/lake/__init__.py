"""What lies in storage: the run directory, its lock, marks and files, and the checks of these."""
