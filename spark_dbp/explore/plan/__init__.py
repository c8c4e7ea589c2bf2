"""A dry run: what a run of a configuration would compute, reuse and write, and at what cost.

`make.plan` is the entry, and gives a `planned.Plan`. `seen` says what was seen of the input, `look` looks
(`look_by_spark` where it takes a session), `reuse` compares with an earlier run, `feasible` judges quotas,
`sizes` counts rows and bytes, `costs` time and memory, `show` writes it all down.
"""
