"""Pure decisions about bytes: who serves which shard, who sums which chunk, how a joiner catches up."""
