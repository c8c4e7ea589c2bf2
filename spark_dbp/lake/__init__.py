"""What lies in storage: the run directory, its lock, marks and files, and what tells that they are whole."""
