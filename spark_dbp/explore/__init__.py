"""Questions about a finished run."""
