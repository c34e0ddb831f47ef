"""Everything at once, by a seed: what fails, who posts meanwhile, and what each of them saw."""
