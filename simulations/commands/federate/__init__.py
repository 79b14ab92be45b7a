"""`umbel federate`: real federations, here and across machines. Nothing heavy is imported before a command runs."""

from umbel.simulations.commands.federate.group import federate

__all__ = ["federate"]
