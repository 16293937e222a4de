"""A domain of a few lines, standard library only: partitions are bytes, a model is their digest."""
