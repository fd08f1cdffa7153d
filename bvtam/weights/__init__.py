"""A name to a zoo folder: the table of published weights, and the store that finds them."""
