"""Measurements against peers, both in the same run. Not tests: nothing here passes or fails."""
