"""From a genotype and images to trained weights: the recipe, the data sets, the LightningModule and the data module."""
