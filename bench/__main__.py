"""`make bench`: every comparison, one after the other."""

from bench import prune_peers, ptq_peers

ptq_peers.main(args=[], standalone_mode=False)
prune_peers.main(args=[], standalone_mode=False)
