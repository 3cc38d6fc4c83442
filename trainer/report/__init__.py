"""What a person sees of a run: curves, plots, grids, console lines, TensorBoard."""
