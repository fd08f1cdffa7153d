"""Videos, data sets and the clips that models see."""
