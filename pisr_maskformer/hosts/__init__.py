"""One module per host network; importing it registers its PISR parts."""
