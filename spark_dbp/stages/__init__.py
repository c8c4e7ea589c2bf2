"""The stages, which the steps of a run call: functions on DataFrames, and on numpy arrays for the quotas."""
