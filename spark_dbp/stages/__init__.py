"""The stages of a run, one module each: functions on DataFrames (or on numpy arrays for the quotas)."""
