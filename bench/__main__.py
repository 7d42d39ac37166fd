"""`make bench`: every comparison, one after the other."""

from bench import ptq_peers

ptq_peers.main(standalone_mode=False)
