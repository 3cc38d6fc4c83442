"""Where the frozen base is while its adapter is trained: whole on the device, recomputed, streamed, in fp8."""
