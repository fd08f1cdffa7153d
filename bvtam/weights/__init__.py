"""A name to a zoo folder: `table.py` has the published weights, `resolve.py` the way from a name to them."""
