"""OpenLineage: the events that are kept in git with what they describe."""
