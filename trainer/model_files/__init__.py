"""Model files on disk: reading and writing them tensor by tensor, merging LoRAs into them, extracting LoRAs."""
