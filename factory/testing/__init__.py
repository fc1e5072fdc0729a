"""Contract suites for plugin authors: what every storage, encoder, selection or generator must do.

Subclass a suite in a test module, give the fixtures that its docstring names, and run pytest. To
see values in failed assertions, say `pytest.register_assert_rewrite("factory.testing")` in a
`conftest.py`. The suites need pytest, which the package itself does not.
"""
