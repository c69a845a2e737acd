"""How fast the server is, side by side with others, in one run.

    python -m benchmarks --peer 'NAME=COMMAND' ...

`contenders` says what is measured and by which calls, `processes` runs it, `clients` speak with it, `stored`
fills it, `measures` has the measurements, `figures` their arithmetic, `report` and `plot` what is shown of
them. Standard library only, and Linux, for what /proc tells.
"""
