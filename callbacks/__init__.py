"""Lightning callbacks for both stages, the search and the training."""
