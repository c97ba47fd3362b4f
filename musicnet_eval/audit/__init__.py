"""`musicnet-audit`: what a data set holds, and whether its splits can be trusted. Trains nothing; imports no torch.

Layer 5. Place in the flow: tracks and their splits → audit → a page, a JSON file and a table. `listen` hears every file once,
`fingerprints` says which recordings sound alike, `findings` puts into plain values what is wrong, `page` shows it, `command` is
the command line.
"""

from musicnet_eval.audit.command import main

__all__ = ["main"]
