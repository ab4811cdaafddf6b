"""Speed against the peers: ours and theirs in one process, ratios printed."""
