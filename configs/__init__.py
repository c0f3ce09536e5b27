"""Named choices for each section of the configuration: `size=S2` reads size/S2.yaml, `data=cifar10` reads data/cifar10.yaml."""
