"""The questions to a set of samples, and the report that answers them."""
