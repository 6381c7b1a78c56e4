"""Contract tests over everything that is registered: `pytest --pyargs invdiff.testing`.

They run over first-party plug-ins and over yours alike.
"""
