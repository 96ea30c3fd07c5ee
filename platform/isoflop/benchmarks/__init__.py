"""How fast is it here? Figures as ratios taken in one run, since machines differ and are shared."""
