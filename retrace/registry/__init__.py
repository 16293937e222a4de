"""MLflow as a view of the versions: everything in it is read from git and DVC, and can be written again from them."""

from retrace.registry.contact import RegistryRefused, RegistryUnavailable, prepare
from retrace.registry.registry import Registry, RegistryConflict

__all__ = ["Registry", "RegistryConflict", "RegistryRefused", "RegistryUnavailable", "prepare"]
