"""One HTML page about a finished run.

`clusters` takes the numbers from the run's tables, `examples` finds rows to look at, `lookup` fetches their
images and texts from the input, `words` says in sentences what the figures show, `page` puts it all into
one file, `write` is what the command calls, `show` what a notebook calls.
"""
