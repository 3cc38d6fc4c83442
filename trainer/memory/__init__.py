"""Where the frozen base is while its adapter is trained (whole, recomputed, streamed, in fp8), and the plan for it."""
