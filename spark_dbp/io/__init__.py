"""Read what comes from outside the run: the input table, and centroids that the user gives."""
