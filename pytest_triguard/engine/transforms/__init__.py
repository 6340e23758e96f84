"""What a gradient estimator does to points, to inputs and to gradients, one file per transform."""
