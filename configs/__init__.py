"""Named choices for each section of the configuration: `data=cifar10` reads data/cifar10.yaml."""
