"""A first search space for someone's images and machine, as `mixtune init` writes it."""

from mixtune.proposal._choice import propose_space
from mixtune.proposal._draft import Draft
from mixtune.proposal._text import Proposal, write_space

__all__ = ["Draft", "Proposal", "propose_space", "write_space"]
