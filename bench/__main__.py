"""`make bench`: every comparison, one after the other."""

from bench import distill_losses, prune_peers, ptq_peers, train_speed

for bench in (train_speed, ptq_peers, prune_peers, distill_losses):
    bench.main(args=[], standalone_mode=False)
