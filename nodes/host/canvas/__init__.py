"""What the canvas shows: progress on a node, this server's runs, earlier runs, the memory estimate."""
