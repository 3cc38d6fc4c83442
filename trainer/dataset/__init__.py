"""From a folder of images to encoded items: scan, caption, encode, and the order of batches."""
